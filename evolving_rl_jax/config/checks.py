"""What a configuration must be like: types, choices, ranges, and combinations that can run.

Every message names the key, what was found and what is accepted.
"""

from __future__ import annotations

import math
from typing import Any

from ml_collections import ConfigDict

ARMS = ("joint", "solver_only", "extractor_only", "grpo")
# Projections of a layer that can have adapters.
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class ConfigError(ValueError):
    """A configuration that cannot run; the message names the key."""


def unknown_key(key: str, node: Any, parent: str) -> str:
    """The message for a key that the group ``node`` (named ``parent``) does not have."""
    known = ", ".join(sorted(node)) if isinstance(node, ConfigDict) else "nothing below it"
    return f"unknown config key {key!r}; accepted in {parent or 'the top level'!r}: {known}"


def item_type(key: str, default: tuple) -> type:
    """What a tuple holds; an empty default does not say so itself."""
    if default:
        return type(default[0])
    return str if key == "rollout.stop_strings" else int


def _require(ok: bool, key: str, accepted: str, found: Any) -> None:
    if not ok:
        shown = " ".join(repr(found).split())
        raise ConfigError(f"config.{key} must be {accepted}, got {shown}")


def check(config: ConfigDict, default: ConfigDict) -> None:
    """Raises :class:`ConfigError` for a wrong type or range, or a combination that cannot run."""
    _check_types(config, default, "")
    _check_choices(config)
    _check_ranges(config)
    _check_model(config)
    r, t, a = config.rollout, config.train, config.algorithm
    trains_extractor = a.arm in ("joint", "extractor_only")
    _require(
        not trains_extractor or r.num_skills >= 2,
        "rollout.num_skills",
        f">= 2 when the extractor is trained (arm {a.arm!r}): one has nothing to compare with",
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
    _require(
        len(t.wandb) <= 128 and not set(t.wandb) & set("/\\#?%:"),
        "train.wandb",
        "empty or a W&B project name (at most 128 characters, none of / \\ # ? % :)",
        t.wandb,
    )
    _require(
        r.max_length >= max(2, r.decode_window),
        "rollout.max_length",
        f">= 2 and >= rollout.decode_window ({r.decode_window})",
        r.max_length,
    )
    num_updates = t.num_iterations * t.minibatches
    _require(
        config.optimizer.schedule == "constant" or config.optimizer.warmup_steps < num_updates,
        "optimizer.warmup_steps",
        f"below the number of updates of a cosine schedule ({num_updates})",
        config.optimizer.warmup_steps,
    )
    _check_memory(config)
    _check_overlap(config)
    _check_web(config)
    _check_collapse(config)


def _check_web(config: ConfigDict) -> None:
    if config.env.name != "mind2web":
        return
    _require(
        config.rollout.context == "recent",
        "rollout.context",
        "'recent' with env.name 'mind2web' (each step is a sequence with an advantage of its own)",
        config.rollout.context,
    )
    _require(
        not config.warmstart.enabled or config.env.protocol == "stop_at_error",
        "env.protocol",
        "'stop_at_error' with a warm start (demonstrations read facts off where an episode ends)",
        config.env.protocol,
    )


def _check_overlap(config: ConfigDict) -> None:
    if not config.rollout.overlap:
        return
    kind, every = config.algorithm.importance.kind, config.checkpoint.every
    _require(
        kind == "truncated",
        "algorithm.importance.kind",
        "'truncated' with rollout.overlap = 1 (its rollouts are one iteration off-policy)",
        kind,
    )
    _require(
        every >= 2,
        "checkpoint.every",
        ">= 2 with rollout.overlap = 1 (nothing is played ahead over a checkpoint)",
        every,
    )


def _check_collapse(config: ConfigDict) -> None:
    _require(
        config.collapse.action != "restore_best" or config.checkpoint.keep_best >= 1,
        "checkpoint.keep_best",
        ">= 1 with collapse.action 'restore_best' (there must be a best checkpoint)",
        config.checkpoint.keep_best,
    )
    for role, limit in config.collapse.max_kl.items():
        _require(
            not limit or any(config.algorithm.kl_coef.values()),
            f"collapse.max_kl.{role}",
            "0 without a KL term (with algorithm.kl_coef 0 for both roles no KL is measured)",
            limit,
        )


def _check_types(config: ConfigDict, default: ConfigDict, prefix: str) -> None:
    for key in config:
        name = f"{prefix}{key}"
        if key not in default:
            raise ConfigError(unknown_key(name, default, prefix.rstrip(".")))
        found, wanted = config[key], default[key]
        if isinstance(wanted, ConfigDict):
            is_group = isinstance(found, ConfigDict)
            _require(is_group, name, f"a group of keys ({', '.join(wanted)})", found)
            _check_types(found, wanted, f"{name}.")
            continue
        same = type(found) is type(wanted) or (isinstance(wanted, float) and type(found) is int)
        if same and isinstance(wanted, tuple):
            kind = item_type(name, wanted)
            same = all(type(x) is kind or (kind is float and type(x) is int) for x in found)
        _require(same, name, f"a {type(wanted).__name__} like {wanted!r}", found)
        if isinstance(wanted, float):
            _require(math.isfinite(found), name, "finite", found)
    missing = [k for k in default if k not in config]
    _require(not missing, f"{prefix}{missing[0] if missing else ''}", "present", None)


CHOICES = {
    "algorithm.arm": ARMS,
    "algorithm.kl_kind": ("k1", "k2", "k3", "low_var_kl"),
    "env.engine": ("cached", "native", "stock"),
    "data.households.rooms": ("compact", "scenes"),
    "env.name": ("alfworld", "mind2web"),
    "env.protocol": ("stop_at_error", "teacher_forced"),
    "rollout.style": ("compact", "chat"),
    "optimizer.name": ("adamw",),
    "optimizer.schedule": ("constant", "cosine"),
    "train.remat": ("full", "dots", "none"),
    "model.dtype": ("float32", "bfloat16"),
    "model.attention": ("auto", "plain", "blockwise", "splash", "pallas_gpu"),
    "rollout.context": ("full", "recent"),
    "rollout.weights_dtype": ("", "float32", "bfloat16"),
    "rollout.overlap": (0, 1),
    "algorithm.importance.kind": ("none", "truncated"),
    "algorithm.extractor_score": ("correct_steps", "share_of_steps"),
    "algorithm.step_pool": ("task", "all"),
    "collapse.action": ("off", "warn", "stop", "restore_best"),
}


def _check_choices(config: ConfigDict) -> None:
    for key, accepted in CHOICES.items():
        found = config
        for part in key.split("."):
            found = found[part]
        _require(found in accepted, key, f"one of {', '.join(map(str, accepted))}", found)
    stops = config.rollout.stop_strings
    _require(all(stops), "rollout.stop_strings", "a tuple of texts that are not empty", stops)
    conditions = ("none", "own", "oracle", "misleading")
    bad = [c for c in config.eval.conditions if c not in conditions]
    _require(not bad, "eval.conditions", f"a tuple of {', '.join(conditions)}", bad)


def _group(name: str, keys: str) -> list[str]:
    return [f"{name}.{key}" for key in keys.split()]


# What single values must be: {accepted: (test, keys)}.
RANGES = {
    ">= 0": (
        lambda x: x >= 0,
        [
            "seed",
            "env.num_workers",
            "train.num_iterations",
            "train.log_episodes",
            "checkpoint.keep_best",
            "model.lora.rank",
            *_group("data.households", "heldout_games warmstart_games"),
            *_group("data.sites", "test_tasks num_test warmstart_sites"),
            *_group("rollout", "top_k memory_limit_gb recent_turns"),
            *_group("optimizer", "warmup_steps weight_decay clip_norm"),
            *_group("algorithm.kl_coef", "solver extractor"),
            *_group("eval", "num_games every seed"),
            *_group("collapse", "min_skill_tokens max_logprob_gap max_restores"),
            *_group("collapse.min_entropy", "solver extractor"),
            *_group("collapse.max_kl", "solver extractor"),
            "skills.prompt_tokens",
        ],
    ),
    ">= 1": (
        lambda x: x >= 1,
        [
            *_group("data.households", "num_train num_unseen games_per_object"),
            *_group("data.sites", "num_train tasks_per_site"),
            *_group("data.sites", "tasks_per_test_site tasks_per_warmstart_site"),
            "env.snapshot_tokens",
            *_group("model", "hidden_size intermediate_size num_layers num_heads num_kv_heads"),
            *_group("rollout", "num_sources num_retrieved num_skills num_repeats num_slots"),
            *_group("rollout", "max_turn_tokens max_skill_tokens max_steps decode_window"),
            *_group("rollout", "max_skill_chars"),
            *_group("train", "minibatches row_length micro_batch_rows logprob_chunk"),
            *_group("checkpoint", "every keep_last"),
            *_group("warmstart", "episodes steps batch_rows"),
            "eval.every_games",
            "optimizer.max_skipped",
            *_group("collapse", "patience window"),
        ],
    ),
    "> 0": (
        lambda x: x > 0,
        [
            "env.deadline_s",
            "rollout.deadline_s",
            *_group("hosts", "start_timeout_s heartbeat_timeout_s"),
            "model.rope_theta",
            "model.lora.alpha",
            "rollout.temperature",
            "warmstart.learning_rate",
            *_group("optimizer", "learning_rate eps"),
            *_group("algorithm", "clip_low clip_high solver_reward importance.cap"),
        ],
    ),
    "in (0, 1]": (lambda x: 0 < x <= 1, ["rollout.top_p"]),
    "in [0, 1)": (lambda x: 0 <= x < 1, _group("optimizer", "b1 b2")),
    "in [0, 1]": (
        lambda x: 0 <= x <= 1,
        [
            "skills.min_similarity",
            *_group("collapse", "min_skill_valid max_win_rate_drop"),
            *_group("collapse.max_zero_variance", "solver extractor"),
            *_group("warmstart", "action_noise follow_skill good_extraction"),
        ],
    ),
    ">= 1, or -1 for the devices that remain": (
        lambda x: x >= 1 or x == -1,
        _group("mesh", "data fsdp tensor"),
    ),
    "a tuple of sizes >= 1": (lambda x: x and min(x) >= 1, ["rollout.prefill_buckets"]),
    "empty or a tuple of sizes >= 1": (
        lambda x: not x or min(x) >= 1,
        _group("rollout", "row_buckets column_buckets"),
    ),
    "a tuple of at least one temperature >= 0": (
        lambda x: x and min(x) >= 0,
        ["eval.temperatures"],
    ),
    "the name of an embedder": (bool, ["skills.embedder"]),
    "a tuple of at least one name": (bool, ["data.train_types", "eval.splits", "eval.conditions"]),
}


def _check_ranges(config: ConfigDict) -> None:
    for accepted, (test, keys) in RANGES.items():
        for key in keys:
            value = config
            for part in key.split("."):
                value = value[part]
            _require(bool(test(value)), key, accepted, value)


# A tokenizer made from scratch has every byte and the seven tokens of the compact form.
LEAST_VOCABULARY = 263


def _check_model(config: ConfigDict) -> None:
    m = config.model
    targets = m.lora.targets
    _require(
        bool(targets) and set(targets) <= set(LORA_TARGETS) and len(set(targets)) == len(targets),
        "model.lora.targets",
        f"a tuple of different names out of {', '.join(LORA_TARGETS)}",
        targets,
    )
    _require(
        not m.lora.rank or bool(m.hf_path) or config.warmstart.enabled,
        "model.lora.rank",
        "0 without model.hf_path or a warm start (adapters need a trained policy under them)",
        m.lora.rank,
    )
    if m.hf_path:
        _require(
            not config.warmstart.enabled,
            "warmstart.enabled",
            "False with model.hf_path (training starts from that policy)",
            True,
        )
        return
    _require(
        config.rollout.style == "compact",
        "rollout.style",
        "'compact' without model.hf_path (a tokenizer made from scratch has no chat template)",
        config.rollout.style,
    )
    _require(
        m.hidden_size % (2 * m.num_heads) == 0,
        "model.hidden_size",
        f"a multiple of 2 x model.num_heads ({m.num_heads}): rotary embeddings need even heads",
        m.hidden_size,
    )
    _require(
        m.num_heads % m.num_kv_heads == 0,
        "model.num_kv_heads",
        f"a divisor of model.num_heads ({m.num_heads})",
        m.num_kv_heads,
    )
    _require(
        m.vocab_size >= LEAST_VOCABULARY,
        "model.vocab_size",
        f">= {LEAST_VOCABULARY} (all bytes and the special tokens)",
        m.vocab_size,
    )


def cache_gigabytes(config: ConfigDict) -> float:
    """Size of the generation cache: slots x length x layers x 2 x kv heads x head size x bytes."""
    m, r = config.model, config.rollout
    width = m.num_kv_heads * (m.hidden_size // m.num_heads)
    size = 2 if (r.weights_dtype or m.dtype) == "bfloat16" else 4
    return r.num_slots * r.max_length * m.num_layers * 2 * width * size / 1e9


def _check_memory(config: ConfigDict) -> None:
    limit, need = config.rollout.memory_limit_gb, cache_gigabytes(config)
    if limit and not config.model.hf_path and need > limit:
        r = config.rollout
        raise ConfigError(
            f"config.rollout.num_slots x max_length must fit memory_limit_gb = {limit}, got "
            f"{r.num_slots} x {r.max_length} = {need:.3g} GB; lower one of them"
        )
