"""Generation: many multi-turn sessions, decoded together with their KV caches kept."""

from evolving_rl_jax.generate.cache import cache_bytes
from evolving_rl_jax.generate.engine import Engine, Generation, Session, Stats

__all__ = ["Engine", "Generation", "Session", "Stats", "cache_bytes"]
