"""The configuration: every key with its default (`defaults`), and what is accepted (`checks`).

Import from here.  Needs ml_collections; never imports jax or another room of the package.
"""

from evolving_rl_jax.config.checks import ARMS, LORA_TARGETS, ConfigError, cache_gigabytes
from evolving_rl_jax.config.defaults import (
    RESUMABLE,
    default_config,
    first_difference,
    flat,
    from_json,
    load_config,
    set_key,
    to_json,
    validate,
)

__all__ = [
    "ARMS",
    "ConfigError",
    "LORA_TARGETS",
    "RESUMABLE",
    "cache_gigabytes",
    "default_config",
    "first_difference",
    "flat",
    "from_json",
    "load_config",
    "set_key",
    "to_json",
    "validate",
]
