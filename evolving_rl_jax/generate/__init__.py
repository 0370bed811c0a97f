"""Generation: many multi-turn sessions, decoded together with their KV caches kept."""

from evolving_rl_jax.generate.cache import cache_bytes
from evolving_rl_jax.generate.engine import Engine
from evolving_rl_jax.generate.memory import MemoryPlan
from evolving_rl_jax.generate.sessions import Generation, Session
from evolving_rl_jax.generate.stats import Stats

__all__ = ["Engine", "Generation", "MemoryPlan", "Session", "Stats", "cache_bytes"]
