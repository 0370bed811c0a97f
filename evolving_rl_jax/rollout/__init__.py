"""Rollouts: prompts as ids, episodes, the four stages of an iteration, demonstrations, batching.

Tokens only: what a benchmark says in a prompt, who plays its warm start and what its tasks know come as
text from ``envs.benchmark``, and no benchmark is known here by name.  Others import the modules, above
all ``evolve`` (the stages), ``episode`` (the driver) and ``prompts``.
Must not import: jax, or ``generate`` and ``run``: the engine and the worker pool are given to it.
"""
