"""What a configuration asks of its tasks: all that they cannot give, found in one pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.data.tasks import source_split
from evolving_rl_jax.envs import benchmark
from evolving_rl_jax.types import Task

__all__ = ["check_games"]

_WITH_FACTS = ("oracle", "misleading")  # conditions whose skills say what decides a task


class _Gap(NamedTuple):
    """Something that is asked for and not there; ``override`` does without it, where that can be."""

    text: str
    override: str


def check_games(config, games: Sequence[Any]) -> None:
    """Refuses tasks that are too few or lack what the configuration asks for.

    Args:
      config: of the run.
      games: tasks, or what is planned to be generated: objects with ``split`` and ``task_type``.

    Raises:
      ConfigError: names everything that is missing and the overrides that do without it.
    """
    sizes = Counter(game.split for game in games)
    training, train_split, types = _training(config, games, sizes)
    gaps = list(training)
    pool = sum(game.split == train_split and game.task_type in types for game in games)
    if pool and config.rollout.num_retrieved > pool - 1:
        gaps.append(
            _Gap(
                f"config.rollout.num_retrieved must be < the number of training tasks ({pool}), got "
                f"{config.rollout.num_retrieved}",
                f"--config.rollout.num_retrieved={pool - 1}" if pool > 1 else "",
            )
        )
    gaps += _panels(config, games, sizes, train_split)
    gaps += _demonstrations(config, games, sizes)
    if gaps:
        overrides = dict.fromkeys(gap.override for gap in gaps)
        way = f"; these tasks do with {' '.join(overrides)}" if all(overrides) else ""
        raise ConfigError("; ".join(gap.text for gap in gaps) + way)


def _training(config, games: Sequence[Any], sizes: Counter[str]):
    """What is missing to train on, and the split and the task types that there are instead."""
    split, types = config.data.train_split, tuple(config.data.train_types)
    if any(game.split == split and game.task_type in types for game in games):
        return [], split, types
    text = (
        f"config.data.train_split and train_types must select games of the splits "
        f"{_names(sizes)}, got {split!r} and {types}"
    )
    overrides = []
    if not sizes[split] and sizes["train"]:
        split = "train"
        overrides.append("--config.data.train_split=train")
    known = sorted({game.task_type for game in games if game.split == split})
    if known and not set(known) & set(types):
        types = tuple(known)
        overrides.append(f"--config.data.train_types={','.join(known)}")
    return [_Gap(text, " ".join(overrides))], split, types


def _panels(config, games: Sequence[Any], sizes: Counter[str], train_split: str) -> Iterator[_Gap]:
    """What is missing for the panels: whole splits, and what conditions need on the others."""
    missing = [name for name in config.eval.splits if not sizes[name]]
    splits = [name for name in config.eval.splits if sizes[name]] or _other_panels(
        sizes, train_split
    )
    if missing:
        yield _Gap(
            f"config.eval.splits must be splits with games ({_names(sizes)}), got "
            f"{', '.join(map(repr, missing))}",
            f"--config.eval.splits={','.join(splits)}" if splits else "",
        )
    reasons = dict(_refused_conditions(games, sizes, splits, train_split))
    rest = [c for c in config.eval.conditions if c not in reasons] or ["none"]
    texts = dict.fromkeys(reasons[c] for c in config.eval.conditions if c in reasons)
    yield from (_Gap(text, f"--config.eval.conditions={','.join(rest)}") for text in texts)


def _refused_conditions(
    games: Sequence[Any], sizes: Counter[str], splits: Sequence[str], train_split: str
) -> Iterator[tuple[str, str]]:
    """Conditions that panels of these splits cannot have, each with the reason."""
    for name in splits:
        source = source_split(name, sizes, train_split)
        if not sizes[source]:
            yield (
                "own",
                f"config.eval.conditions must not have 'own' for the split {name!r} without games in "
                f"{source!r}, got the splits {_names(sizes)}",
            )
    silent = _without_facts(games)
    found = [f"{silent[name]} such tasks in {name!r}" for name in splits if silent[name]]
    for condition in _WITH_FACTS if found else ():
        yield (
            condition,
            f"config.eval.conditions must not need household facts, or those of web sites (oracle and "
            f"misleading skills), where tasks state none, got {', '.join(found)}",
        )


def _demonstrations(config, games: Sequence[Any], sizes: Counter[str]) -> Iterator[_Gap]:
    """What is missing for the warm start."""
    without = "--config.warmstart.enabled=False"
    silent = Counter(
        t.split for t in games if isinstance(t, Task) and not benchmark(t.env).teaches(t)
    )
    w = config.warmstart
    for split in w.splits if w.enabled and w.source == "demonstrations" else ():
        if not sizes[split]:
            yield _Gap(
                f"config.warmstart.enabled must be False without games in the split {split!r}, got "
                f"the splits {_names(sizes)}",
                without,
            )
        elif silent[split]:
            yield _Gap(
                f"config.warmstart.enabled must be False where tasks of {split!r} state no facts, got "
                f"{silent[split]} such tasks",
                without,
            )


def _other_panels(sizes: Counter[str], train_split: str) -> list[str]:
    """Splits that a panel can play when none of those asked for is there."""
    others = [
        name
        for name in sorted(sizes)
        if name not in (train_split, "warmstart", "heldout_types_train")
        and not name.endswith("_sources")
    ]
    return others or [train_split] * bool(sizes[train_split])


def _without_facts(games: Sequence[Any]) -> Counter[str]:
    """Tasks of each split that do not say what decides them; what is only planned will."""
    tasks = (game for game in games if isinstance(game, Task))
    return Counter(t.split for t in tasks if not benchmark(t.env).states_facts(t))


def _names(sizes: Counter[str]) -> str:
    return ", ".join(sorted(name for name in sizes if sizes[name]))
