"""Somebody else's environment, named ``package.module:attribute``, as a benchmark.

``contract`` says what such an object must have and checks it, ``benchmark`` makes a run's benchmark of
it.  Nothing here knows any environment by name; import ``load`` from here.  `docs/add-an-environment.md` has a complete example.
"""

from evolving_rl_jax.envs.custom.benchmark import load

__all__ = ["load"]
