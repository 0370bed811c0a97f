"""ALFWorld: everything of it, as text.

``env`` plays a game on our own ``engine`` or on the published one (``stock``), ``check`` compares the
two; ``tasks``, ``folder``, ``index``, ``start``, ``official`` and ``archives`` read game folders,
``households`` writes new ones; ``texts``, ``experts``, ``teacher``, ``facts`` and ``corpus`` are its prompts and its
warm start, ``names`` its own words.  ``benchmark`` offers all this to a run: go through it, or
through ``envs.make``.  Nothing here imports jax, ``data``, ``rollout`` or above.
"""
