"""Compiled programs are kept on disk, in the user's cache folder unless the user has said otherwise."""

from __future__ import annotations

import os
import pathlib

__all__ = ["cache_folder", "keep_programs"]

# Seconds that a program must have taken to compile; jax's own default, 1 s, leaves out most of those of
# a small policy.
_LEAST_SECONDS = 0.3


def keep_programs(folder: pathlib.Path | None = None) -> None:
    """Turns jax's persistent compilation cache on, unless its folder is set or it is switched off.

    Which program is which is jax's affair: its keys hold the program, the compiler, its flags and the
    devices.  A cache that cannot be written costs a warning of jax.

    Args:
      folder: of the cache; None = `cache_folder`.
    """
    import jax

    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder or cache_folder()))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)


def cache_folder() -> pathlib.Path:
    """``evolving-rl/compiled`` in the user's cache folder (XDG_CACHE_HOME, else ~/.cache)."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = pathlib.Path(base) if os.path.isabs(base) else pathlib.Path.home() / ".cache"
    return root / "evolving-rl" / "compiled"
