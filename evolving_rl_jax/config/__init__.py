"""The configuration: every key with its default and what it accepts.

``defaults`` has the keys, ``accepted`` the kinds of values, ``checks`` the combinations that can run,
``files`` reading and writing.  Import from here alone.  Needs ml_collections; never imports jax or
another room of the package.
"""

from evolving_rl_jax.config.accepted import ConfigError
from evolving_rl_jax.config.checks import cache_gigabytes, decay_length, validate
from evolving_rl_jax.config.defaults import ARMS, LORA_TARGETS, default_config
from evolving_rl_jax.config.files import (
    FOLDERS,
    RESUMABLE,
    first_difference,
    flat,
    from_json,
    load_config,
    schedule_change,
    set_key,
    to_json,
    with_moved,
)

__all__ = [
    "ARMS",
    "ConfigError",
    "FOLDERS",
    "LORA_TARGETS",
    "RESUMABLE",
    "cache_gigabytes",
    "decay_length",
    "default_config",
    "first_difference",
    "flat",
    "from_json",
    "load_config",
    "schedule_change",
    "set_key",
    "to_json",
    "validate",
    "with_moved",
]
