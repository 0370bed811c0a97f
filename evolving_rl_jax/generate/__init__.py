"""Generation: many multi-turn sessions, decoded together with their KV caches kept.

``engine`` is the scheduler, ``slots`` what the host knows of each slot, ``runner`` the device work over
``programs``, the compiled functions; ``sampling``, ``cache``, ``weights``, ``memory`` and ``stats`` are its parts.

Import from here: the names below.  This room knows ``models`` and ``parallel``: tokens go in and come
out, and no prompt, environment, configuration or file is known.
"""

from evolving_rl_jax.generate.cache import cache_bytes
from evolving_rl_jax.generate.engine import Engine
from evolving_rl_jax.generate.memory import MemoryPlan
from evolving_rl_jax.generate.sessions import Generation, Session
from evolving_rl_jax.generate.stats import Stats

__all__ = ["Engine", "Generation", "MemoryPlan", "Session", "Stats", "cache_bytes"]
