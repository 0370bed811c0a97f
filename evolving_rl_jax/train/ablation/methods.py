"""Several configurations to compare: what they must share, and how long each trains."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from evolving_rl_jax.config import ConfigError, load_config

# What the warm start, the games and the panel follow from.
_SHARED = ("env", "data", "model", "skills", "warmstart", "eval")
_SHARED_ROLLOUT = (
    "style", "show_actions", "context", "recent_turns", "max_turn_tokens", "max_skill_tokens",
    "max_steps", "max_length", "max_skill_chars", "top_p", "top_k", "stop_strings",
    "num_source_episodes", "extraction_lines", "weights_dtype",
)  # fmt: skip


def read_methods(paths: Sequence[str], overrides: dict[str, str]) -> dict[str, ConfigDict]:
    """Name -> configuration of each file, with as many episodes as the first.

    Args:
      paths: files with ``get_config()``; the name of one is that of its file.
      overrides: of keys of all of them.

    Raises:
      ConfigError: one cannot be read, two have one name, or they differ in what a comparison must share.
    """
    found: dict[str, ConfigDict] = {}
    for path in paths:
        name = pathlib.Path(path).stem
        if name in found:
            raise ConfigError(f"--configs must be files of different names, got {name!r} twice")
        found[name] = load_config(path, overrides)
    if not found:
        raise ConfigError("--configs must be at least one file, with commas, got none")
    first = next(iter(found))
    for name, config in found.items():
        if key := _first_apart(found[first], config):
            raise ConfigError(
                f"--configs must agree in {', '.join(_SHARED)} and in what a prompt is (they share "
                f"games, warm start and panel), got {name} with another config.{key} than {first}"
            )
    return with_equal_episodes(found)


def _first_apart(one: ConfigDict, other: ConfigDict) -> str:
    for group in _SHARED:
        for key in one[group]:
            if one[group][key] != other[group][key]:
                return f"{group}.{key}"
    apart = [k for k in _SHARED_ROLLOUT if one.rollout[k] != other.rollout[k]]
    return f"rollout.{apart[0]}" if apart else ""


def episodes_an_iteration(config: ConfigDict) -> int:
    """Solver episodes that an iteration plays, all skills valid and nothing refilled."""
    r, bank = config.rollout, config.guidance
    plays = r.num_skills * r.num_repeats + bank.free_repeats + bank.repeats
    sources = 0 if config.algorithm.arm == "grpo" else r.num_source_episodes
    return r.num_sources * (sources + r.num_retrieved * plays)


def with_equal_episodes(configs: Mapping[str, ConfigDict]) -> dict[str, ConfigDict]:
    """The configurations with ``train.num_iterations`` such that each plays as much as the first.

    To the nearest iteration, and at least one; a cosine schedule goes with it.
    """
    first = next(iter(configs.values()))
    total = first.train.num_iterations * episodes_an_iteration(first)
    equal: dict[str, ConfigDict] = {}
    for name, config in configs.items():
        own = ConfigDict(config.to_dict())
        if total:
            own.train.num_iterations = max(1, round(total / episodes_an_iteration(config)))
        equal[name] = own.lock()
    return equal
