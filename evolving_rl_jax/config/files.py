"""Configurations in files: reading one with overrides, and what a run folder keeps of it."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import pathlib
from typing import Any

from ml_collections import ConfigDict

from evolving_rl_jax.config.accepted import ConfigError
from evolving_rl_jax.config.checks import decay_length, item_type, unknown_key, validate
from evolving_rl_jax.config.defaults import default_config


def load_config(path: str, overrides: dict[str, str] | None = None) -> ConfigDict:
    """Reads ``get_config()`` of the file ``path``, applies ``key.sub=value`` overrides, validates.

    Raises:
      ConfigError: the file, an override or the result cannot be used.
    """
    file = pathlib.Path(path)
    if not file.is_file() or file.suffix != ".py":
        found = "not a .py file" if file.exists() else "no such file"
        raise ConfigError(f"--config must be a .py file with get_config(), got {path!r} ({found})")
    spec = importlib.util.spec_from_file_location("evolving_rl_config", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except ConfigError:
        raise
    except Exception as e:  # it is the user's program: it can raise anything
        message = f"{type(e).__name__}: {' '.join(str(e).split())}"
        raise ConfigError(f"--config {path!r} must define get_config(), got {message}") from e
    if not isinstance(config, ConfigDict):
        found = type(config).__name__
        raise ConfigError(f"get_config() of {path!r} must return a ConfigDict, got {found}")
    for key, value in (overrides or {}).items():
        set_key(config, key, value)
    make_absolute(config)
    validate(config)
    return config.lock()


def make_absolute(config: ConfigDict) -> None:
    """Makes the paths of ``FOLDERS`` absolute, so that a run means the same wherever it goes on.

    A model that is neither a folder nor a file here is the id of one on a hub, and stays.
    """
    for key in FOLDERS:
        group, leaf = key.split(".")
        value = config[group][leaf]
        if value and (key == "data.games" or os.path.exists(value)):
            config[group][leaf] = os.path.abspath(value)


def with_moved(config: ConfigDict, overrides: dict[str, str]) -> ConfigDict:
    """A configuration of a run whose folders lie elsewhere now.

    Raises:
      ConfigError: an override of something else than a folder.
    """
    for key in overrides:
        if key not in FOLDERS:
            raise ConfigError(
                f"--config.KEY=DIR must say where a folder of the run has moved "
                f"({', '.join(FOLDERS)}), got {key}"
            )
    config = ConfigDict(config.to_dict())
    for key, value in overrides.items():
        set_key(config, key, value)
    make_absolute(config)
    return config.lock()


def set_key(config: ConfigDict, key: str, text: str) -> None:
    """Sets ``config.key`` from text, converted to the type of the value that is there."""
    *parents, leaf = key.split(".")
    node: Any = config
    for i, part in enumerate(parents):
        if not isinstance(node, ConfigDict) or part not in node:
            raise ConfigError(unknown_key(key, node, ".".join(parents[:i])))
        node = node[part]
    if not isinstance(node, ConfigDict) or leaf not in node:
        raise ConfigError(unknown_key(key, node, ".".join(parents)))
    if isinstance(node[leaf], ConfigDict):
        keys = ", ".join(node[leaf])
        raise ConfigError(f"--config.{key} must be a single key, got a group of keys ({keys})")
    node[leaf] = _convert(key, text, node[leaf])


def _convert(key: str, text: str, old: Any) -> Any:
    try:
        if isinstance(old, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if isinstance(old, tuple):
            kind = item_type(key, old)
            return tuple(kind(p) for p in _items(text))
        return type(old)(text)
    except (KeyError, ValueError):
        kind = type(old).__name__
        raise ConfigError(f"config.{key} must be a {kind} like {old!r}, got {text!r}") from None


def _items(text: str) -> list[str]:
    """The items of a tuple as people write one: ``a,b``, or as Python does, ``('a', 'b')``."""
    text = text.strip()
    if text[:1] + text[-1:] in ("()", "[]"):  # of the tuple, not of an item such as "]"
        text = text[1:-1]
    items = [p.strip() for p in text.split(",") if p.strip()]
    return [p[1:-1] if len(p) > 1 and p[0] == p[-1] and p[0] in "'\"" else p for p in items]


def to_json(config: ConfigDict) -> str:
    """Canonical JSON text of the configuration (what the run folder keeps)."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def flat(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value, for all keys."""
    found: dict[str, Any] = {}
    for key in config:
        value, name = config[key], f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, ConfigDict) else {name: value}
    return found


_EVERY_RUN_HAS = ("seed", "env", "data", "model", "rollout", "algorithm", "train", "eval")


def from_json(path: pathlib.Path) -> ConfigDict:
    """Reads what :func:`to_json` wrote; raises :class:`ConfigError` when it is something else.

    Keys that are younger than the file get their defaults, which are chosen so that they change
    nothing: runs of an earlier version can be read and gone on with.  Their engine ``cached`` is read
    as ``native``, which gives the same text at every step, and ``env.cache_dir``, where that kept
    its translated games, is left out.
    """
    try:
        data = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ConfigError(f"{path} must be the JSON configuration of a run, got: {e}") from e
    if not isinstance(data, dict):
        found = type(data).__name__
        raise ConfigError(f"{path} must be the JSON configuration of a run, got a {found}")
    absent = [key for key in _EVERY_RUN_HAS if key not in data]
    if absent:
        raise ConfigError(
            f"{path} must be the JSON configuration of a run, got one without {absent[0]!r}"
        )
    _modernise(data["env"])
    config = ConfigDict(_filled(_tuples(data), default_config().to_dict()))
    try:
        validate(config)
    except ConfigError as e:
        raise ConfigError(f"{path}, which another version may have written: {e}") from e
    return config.lock()


def _modernise(env: Any) -> None:
    """Leaves out what earlier versions had and what made no difference to a run."""
    if isinstance(env, dict):
        env.pop("cache_dir", None)
        if env.get("engine") == "cached":
            env["engine"] = "native"


def _filled(data: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """``data`` with the keys of ``defaults`` that it lacks."""
    filled = {**defaults, **data}
    for key, default in defaults.items():
        if isinstance(default, dict) and isinstance(filled[key], dict):
            filled[key] = _filled(filled[key], default)
    return filled


def _tuples(node: Any) -> Any:
    if isinstance(node, dict):
        return {k: _tuples(v) for k, v in node.items()}
    return tuple(node) if isinstance(node, list) else node


# Keys that may change when a run goes on in its folder: how long, where, how often and in how much
# memory, never what.  docs/pods.md says which of them change the last digits.
RESUMABLE = (
    *("train.num_iterations", "env.num_workers", "env.deadline_s", "rollout.deadline_s"),
    *("env.engine", "env.check_games", "env.memory_mb"),
    *("checkpoint", "collapse", "mesh", "hosts", "train.wandb", "train.log_episodes", "eval.every"),
    *("train.micro_batch_rows", "train.row_length", "train.logprob_chunk", "train.remat"),
    *("model.attention", "rollout.num_slots", "rollout.memory_limit_gb", "rollout.prefill_buckets"),
    *("rollout.decode_window", "rollout.row_buckets", "rollout.column_buckets"),
    "warmstart.every",
    "warmstart.batch_rows",  # without effect once the warm start is made
    "optimizer.decay_updates",  # what it comes to may not: see schedule_change
    "train.max_unscored",
)


# Keys that name the user's folders.  Their paths are kept absolute, and may change when the folders
# move; what they hold may not (see run.inputs).
FOLDERS = ("data.games", "model.hf_path", "skills.embedder", "model.lora_adapter")
FOLDERS += ("warmstart.path",)


def schedule_change(old: ConfigDict, new: ConfigDict) -> str:
    """What going on with ``new`` would do to the learning rate of ``old``; "" for nothing.

    A constant rate has no length, and nothing was trained with a cosine of none.  A cosine that gets
    another one jumps, to where the longer or shorter one would be.
    """
    lengths = decay_length(old), decay_length(new)
    if new.optimizer.schedule == "constant" or lengths[0] in (0, lengths[1]):
        return ""
    update = max(0, min(lengths) - 1)
    before, after = (_cosine(new.optimizer, update, length) for length in lengths)
    return (
        f"the cosine of optimizer.schedule would get {lengths[1]} updates instead of {lengths[0]}, which "
        f"takes the learning rate of update {update} from {before:.2g} to {after:.2g}; "
        f"optimizer.decay_updates={lengths[0]} keeps it"
    )


def _cosine(optimizer: ConfigDict, update: int, length: int) -> float:
    done = (update - optimizer.warmup_steps) / max(1, length - optimizer.warmup_steps)
    return optimizer.learning_rate * (1 + math.cos(math.pi * max(done, 0.0))) / 2


def first_difference(
    old: ConfigDict, new: ConfigDict, prefix: str = ""
) -> tuple[str, Any, Any] | None:
    """(key, old value, new value) of the first difference, or None.

    RESUMABLE keys may differ, and so may the paths of FOLDERS, which are compared by what is there.
    """
    for key in old:
        name = f"{prefix}{key}"
        if name in RESUMABLE:
            continue
        if isinstance(old[key], ConfigDict):
            found = first_difference(old[key], new[key], f"{name}.")
            if found:
                return found
        elif old[key] != new[key] and not _may_have_moved(name, old[key], new[key]):
            return name, old[key], new[key]
    return None


def _may_have_moved(name: str, old: Any, new: Any) -> bool:
    """Whether two paths may be of one folder; earlier versions kept relative ones."""
    if name not in FOLDERS or not old or not os.path.isabs(new):
        return False
    return os.path.isabs(old) or os.path.abspath(old) == new
