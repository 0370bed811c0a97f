"""Evaluation: fixed panels of games, streams of tasks, and the figures that come of them.

``panel`` and ``stream`` play, ``journal`` keeps what was played, ``results`` and ``web`` write the files,
``statistics`` makes every interval of the project, ``tables`` turns figures into text, ``compare`` pairs
two policies.  ``transfer/`` is for somebody else's policy.

Import from here whatever takes a run (``run``) and parameters; ``report`` and ``train`` do.  This room imports neither
of them, and knows no environment but for the metrics of web tasks in ``web``.
"""
