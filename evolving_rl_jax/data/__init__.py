"""Tasks as training and evaluation take them: splits, copies of panel games, the order of training.

Import from ``data.tasks``.  How a benchmark keeps its tasks on disk is its own folder's affair
(``envs.alfworld.tasks``, ``envs.mind2web.store``); nothing under ``envs`` imports this room.  Needs
numpy only; never imports jax, skills or rollout.
"""
