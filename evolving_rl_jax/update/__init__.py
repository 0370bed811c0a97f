"""The update: a pure, compiled function (state, batch) -> (state, metrics), on jax alone.

``step`` is the function for training and for cloning, ``advantages``, ``rows``, ``microbatch`` and
``agreement`` its parts, ``state`` what it changes, ``optimizer`` how.

Import from here: ``make_train_step``, ``make_optimizer``, the states, `STEP_METRICS`.  This room
knows ``losses``, ``models``, ``parallel`` and ``types``; no configuration is read but by the names of
its keys, no file, environment or run is known.
"""
