"""Training: the loop, and what only the loop needs.

``loop`` is one iteration after the other, ``setup`` what it works with; ``collect`` plays the episodes,
``cloning`` makes the policy that training starts from, ``saves`` and ``checkpoint`` keep the state,
``collapse`` and ``limits`` end a run or take it back, ``global_batch`` puts hosts together, and
``ablation/`` trains every arm.

Import from here: ``loop.train`` and ``ablation``, in ``cli``.  The update itself is in ``update``, panels
are in ``eval``, what is written in ``record``: nothing below may import this room.
"""
