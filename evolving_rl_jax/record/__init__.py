"""What a run writes down of itself while it trains.

``run`` writes what an iteration leaves, ``figures`` makes its numbers (the one definition of each,
panels use it too), ``metrics`` is their file, TensorBoard and the progress line, ``tracking`` W&B,
``episodes`` the sources that are kept whole.

Import from here: the figures, and readers of the files.  This room knows ``run`` and what is below it,
and nothing of evaluation, reports or training; every name that it writes is in docs/metrics.md.
"""
