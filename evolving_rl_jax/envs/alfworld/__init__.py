"""ALFWorld: everything of it, as text.

``env`` makes the environment that plays a game (``engine``, or the published package in ``stock``)
and ``check`` compares the two; ``folder``, ``index``, ``official`` and ``archives`` read and index
game folders, ``households`` writes new ones; ``experts``, ``facts`` and ``corpus`` are what teachers
and tokenizers take from games; ``names`` has ALFWorld's own words.  Environments come from
``envs.make``, the rest from these modules.  Nothing here imports jax, ``data``, ``rollout`` or above.
"""
