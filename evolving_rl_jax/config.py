"""The whole configuration: every key, its default, and what is accepted.

A file in ``configs/`` overrides keys of :func:`default_config`; an unknown key, a wrong type or an
impossible combination is an error that names the key, what was found and what is accepted.
"""

from __future__ import annotations

import importlib.util
import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

ARMS = ("joint", "solver_only", "extractor_only", "grpo")


class ConfigError(ValueError):
    """A configuration that cannot run; the message names the key."""


def default_config() -> ConfigDict:
    """The defaults: the paper's ALFWorld numbers (arXiv 2605.10663) where it gives them."""
    return ConfigDict(
        {
            "seed": 0,
            "env": _env_defaults(),
            "data": _data_defaults(),
            "model": _model_defaults(),
            "rollout": _rollout_defaults(),
            "algorithm": _algorithm_defaults(),
            "optimizer": {
                "name": "adamw",
                "learning_rate": 1e-6,
                "b1": 0.9,
                "b2": 0.98,
                "eps": 1e-8,
                "weight_decay": 0.1,
                "clip_norm": 1.0,
                "schedule": "constant",  # constant | cosine
                "warmup_steps": 0,
            },
            "train": {
                "num_iterations": 150,
                "minibatches": 1,  # optimizer steps an iteration, each on its own share of the G sources
                "row_length": 16384,  # T: tokens a packed row, also the longest trainable sequence
                "micro_batch_rows": 8,
                "logprob_chunk": 512,
                "remat": "full",  # full | none: recompute activations in the backward pass or keep them
                "log_episodes": 8,  # episodes an iteration written to episodes/*.jsonl.gz (0 = none)
            },
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},  # -1 takes the devices that remain
            "checkpoint": {"every": 10, "keep_last": 2, "keep_best": 1},
            "warmstart": _warmstart_defaults(),
            "eval": {
                "temperatures": (1.0, 0.3),
                "splits": ("valid_unseen", "heldout_types"),
                "conditions": ("none", "own", "oracle", "misleading"),
                "num_games": 0,  # games a split (0 = all)
                "every": 0,  # iterations between small panels during training (0 = only before and after)
                "every_games": 64,
                "seed": 1,
            },
        }
    )


def _env_defaults() -> dict[str, Any]:
    return {
        "name": "alfworld",
        "engine": "cached",  # cached | stock
        "num_workers": 2,
        "deadline_s": 120.0,  # a worker that does not answer for so long is replaced
        "cache_dir": "",  # translated games; empty = WORKDIR/cache
    }


def _data_defaults() -> dict[str, Any]:
    return {
        "games": "",  # folder with games; empty = generate them into WORKDIR/games
        "train_split": "train",
        "train_types": (
            "pick_and_place_simple",
            "pick_clean_then_place_in_recep",
            "pick_heat_then_place_in_recep",
            "pick_cool_then_place_in_recep",
        ),
        "households": {  # what to generate when `games` is empty
            "num_train": 32,
            "num_unseen": 80,
            "games_per_object": 4,
            "heldout_games": 240,
            "warmstart_games": 768,
        },
    }


def _model_defaults() -> dict[str, Any]:
    return {
        "hf_path": "",  # folder with config.json and safetensors; empty = train from scratch
        "vocab_size": 640,  # upper bound of the tokenizer that is trained from scratch
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 4,
        "rope_theta": 10000.0,
        "dtype": "float32",  # compute type; master weights are always float32
    }


def _rollout_defaults() -> dict[str, Any]:
    return {
        "style": "compact",  # compact: short forms for small policies | tagged: <reasoning>/<action>
        "num_sources": 16,  # G
        "num_retrieved": 4,  # K
        "num_skills": 8,  # N
        "num_repeats": 1,  # R
        "max_turn_tokens": 512,
        "max_skill_tokens": 1536,
        "max_steps": 50,  # environment steps; a task with a smaller limit of its own keeps it
        "temperature": 1.0,
        "top_p": 0.9,
        "top_k": 0,
        "num_slots": 32,  # S
        "max_length": 16384,  # C: cache columns a slot
        "prefill_buckets": (64, 256, 1024),
        "decode_window": 16,
        "row_buckets": (),  # engine shapes; empty = geometric up to num_slots
        "column_buckets": (),  # the same up to max_length
        "sync": True,  # wait for all environment replies before decoding on: reproducible bit for bit
        "evaluate_invalid_skills": False,
        "max_skill_chars": 6000,
        "memory_limit_gb": 0.0,  # 0 = do not check the cache against a limit
    }


def _algorithm_defaults() -> dict[str, Any]:
    return {
        "arm": "joint",
        "extractor_weight": 0.2,
        "solver_weight": 1.0,
        "solver_reward": 10.0,
        "clip_low": 0.1,
        "clip_high": 0.15,
        "kl_kind": "low_var_kl",
        "kl_coef": {"solver": 0.01, "extractor": 0.01},
        "entropy_coef": {"solver": 0.0, "extractor": -0.03},
    }


def _warmstart_defaults() -> dict[str, Any]:
    return {
        "enabled": False,
        "episodes": 4000,
        "steps": 600,
        "batch_rows": 32,
        "learning_rate": 3e-3,
        "action_noise": 0.05,  # share of turns with a random admissible action
        "follow_skill": 0.8,  # how often the cloned solver follows a skill about its own object
        "good_extraction": 0.4,  # share of cloned extractions that state the decisive fact when it was seen
    }


def load_config(path: str, overrides: dict[str, str] | None = None) -> ConfigDict:
    """Reads ``get_config()`` of the file at ``path``, applies ``key.sub=value`` overrides, validates."""
    file = pathlib.Path(path)
    if not file.is_file():
        raise ConfigError(f"--config must be a Python file with get_config(), got {path!r} (no such file)")
    spec = importlib.util.spec_from_file_location("evolving_rl_config", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except ConfigError:
        raise
    except (AttributeError, KeyError, TypeError, SyntaxError, ImportError) as e:
        message = str(e).replace("\n", " ")
        raise ConfigError(f"--config {path!r} must define get_config(): {message}") from e
    for key, value in (overrides or {}).items():
        set_key(config, key, value)
    validate(config)
    return config.lock()


def set_key(config: ConfigDict, key: str, text: str) -> None:
    """Sets ``config.key`` from text, converted to the type of the value that is there."""
    *parents, leaf = key.split(".")
    node: Any = config
    for i, part in enumerate(parents):
        if not isinstance(node, ConfigDict) or part not in node:
            raise ConfigError(_unknown(key, node, ".".join(parents[:i])))
        node = node[part]
    if not isinstance(node, ConfigDict) or leaf not in node:
        raise ConfigError(_unknown(key, node, ".".join(parents)))
    if isinstance(node[leaf], ConfigDict):
        raise ConfigError(f"--config.{key} is a group of keys ({', '.join(node[leaf])}); name one of them")
    node[leaf] = _convert(key, text, node[leaf])


def _unknown(key: str, node: Any, parent: str) -> str:
    known = ", ".join(sorted(node)) if isinstance(node, ConfigDict) else "nothing below it"
    return f"unknown config key {key!r}; accepted in {parent or 'the top level'!r}: {known}"


def _convert(key: str, text: str, old: Any) -> Any:
    try:
        if isinstance(old, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if isinstance(old, tuple):
            parts = [p.strip() for p in text.strip("()[] ").split(",") if p.strip()]
            kind = type(old[0]) if old else int
            return tuple(kind(p.strip("'\"")) for p in parts)
        return type(old)(text)
    except (KeyError, ValueError):
        raise ConfigError(f"config.{key} must be a {type(old).__name__} like {old!r}, got {text!r}") from None


def _require(ok: bool, key: str, accepted: str, found: Any) -> None:
    if not ok:
        raise ConfigError(f"config.{key} must be {accepted}, got {found!r}")


def validate(config: ConfigDict) -> None:
    """Raises :class:`ConfigError` for a wrong type, an unknown choice or an impossible combination."""
    _validate_types(config, default_config(), "")
    _validate_choices(config)
    r, t, a = config.rollout, config.train, config.algorithm
    for name in ("num_sources", "num_retrieved", "num_skills", "num_repeats", "num_slots", "max_length"):
        _require(r[name] >= 1, f"rollout.{name}", ">= 1", r[name])
    for name in ("row_length", "micro_batch_rows", "minibatches", "logprob_chunk"):
        _require(t[name] >= 1, f"train.{name}", ">= 1", t[name])
    trains_extractor = a.arm in ("joint", "extractor_only")
    _require(
        not trains_extractor or r.num_skills >= 2,
        "rollout.num_skills",
        f">= 2 when the extractor is trained (arm {a.arm!r}): one skill has no group to compare with",
        r.num_skills,
    )
    trains_solver = a.arm in ("joint", "solver_only", "grpo")
    _require(
        not trains_solver or r.num_skills * r.num_repeats >= 2,
        "rollout.num_repeats",
        ">= 2 when num_skills is 1 (a group of one episode has no advantage)",
        r.num_repeats,
    )
    _require(
        r.num_sources % t.minibatches == 0,
        "train.minibatches",
        f"a divisor of rollout.num_sources ({r.num_sources})",
        t.minibatches,
    )
    _require(
        t.row_length >= r.max_length,
        "train.row_length",
        f">= rollout.max_length ({r.max_length}), the longest sequence that a rollout can give",
        t.row_length,
    )
    _require(0 < r.top_p <= 1, "rollout.top_p", "in (0, 1]", r.top_p)
    _require(r.temperature > 0, "rollout.temperature", "> 0 (training samples)", r.temperature)
    _require(config.optimizer.learning_rate > 0, "optimizer.learning_rate", "> 0", config.optimizer.learning_rate)
    _validate_memory(config)


def _validate_types(config: ConfigDict, default: ConfigDict, prefix: str) -> None:
    for key in config:
        name = f"{prefix}{key}"
        if key not in default:
            raise ConfigError(_unknown(name, default, prefix.rstrip(".")))
        found, wanted = config[key], default[key]
        if isinstance(wanted, ConfigDict):
            _require(isinstance(found, ConfigDict), name, f"a group of keys ({', '.join(wanted)})", found)
            _validate_types(found, wanted, f"{name}.")
            continue
        same = type(found) is type(wanted) or (isinstance(wanted, float) and type(found) is int)
        _require(same, name, f"a {type(wanted).__name__} like {wanted!r}", found)
    missing = [k for k in default if k not in config]
    _require(not missing, f"{prefix}{missing[0] if missing else ''}", "present", None)


CHOICES = {
    "algorithm.arm": ARMS,
    "algorithm.kl_kind": ("k1", "k2", "k3", "low_var_kl"),
    "env.engine": ("cached", "stock"),
    "env.name": ("alfworld",),
    "rollout.style": ("compact", "tagged"),
    "optimizer.name": ("adamw",),
    "optimizer.schedule": ("constant", "cosine"),
    "train.remat": ("full", "none"),
    "model.dtype": ("float32", "bfloat16"),
}


def _validate_choices(config: ConfigDict) -> None:
    for key, accepted in CHOICES.items():
        group, leaf = key.split(".")
        _require(config[group][leaf] in accepted, key, f"one of {', '.join(accepted)}", config[group][leaf])
    conditions = ("none", "own", "oracle", "misleading")
    bad = [c for c in config.eval.conditions if c not in conditions]
    _require(not bad, "eval.conditions", f"a tuple of {', '.join(conditions)}", bad)


def cache_gigabytes(config: ConfigDict) -> float:
    """Size of the generation cache: slots x length x layers x 2 x kv heads x head size x bytes."""
    m, r = config.model, config.rollout
    width = m.num_kv_heads * (m.hidden_size // m.num_heads)
    size = 2 if m.dtype == "bfloat16" else 4
    return r.num_slots * r.max_length * m.num_layers * 2 * width * size / 1e9


def _validate_memory(config: ConfigDict) -> None:
    limit, need = config.rollout.memory_limit_gb, cache_gigabytes(config)
    if limit and not config.model.hf_path and need > limit:
        r = config.rollout
        raise ConfigError(
            f"config.rollout.num_slots x max_length must fit memory_limit_gb = {limit}, got {r.num_slots} x "
            f"{r.max_length} = {need:.1f} GB; lower one of them"
        )


def to_json(config: ConfigDict) -> str:
    """Canonical JSON text of the configuration (what the run folder keeps)."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def from_json(path: pathlib.Path) -> ConfigDict:
    """Reads what :func:`to_json` wrote; raises :class:`ConfigError` when it is not a configuration."""
    try:
        data = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        config = ConfigDict(_tuples(data))
    except (OSError, ValueError, TypeError) as e:
        raise ConfigError(f"{path} must be the JSON configuration of a run, got: {e}") from e
    validate(config)
    return config.lock()


def _tuples(node: Any) -> Any:
    if isinstance(node, dict):
        return {k: _tuples(v) for k, v in node.items()}
    return tuple(node) if isinstance(node, list) else node


# Keys that may change when a run goes on in its folder: how long, where and how often, never what.
RESUMABLE = ("train.num_iterations", "env.num_workers", "env.deadline_s", "checkpoint", "mesh")


def first_difference(old: ConfigDict, new: ConfigDict, prefix: str = "") -> tuple[str, Any, Any] | None:
    """The first key in which two configurations differ, apart from those that may change on resume."""
    for key in old:
        name = f"{prefix}{key}"
        if name in RESUMABLE:
            continue
        if isinstance(old[key], ConfigDict):
            found = first_difference(old[key], new[key], f"{name}.")
            if found:
                return found
        elif old[key] != new[key]:
            return name, old[key], new[key]
    return None
