"""What a configuration must be like as a whole: types, values, and combinations that can run.

Every message names the key, what was found and what is accepted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from evolving_rl_jax.config.accepted import ConfigError
from evolving_rl_jax.config.defaults import accepted, default_config

_ACCEPTED = accepted()
# A tokenizer made from scratch has every byte and the seven tokens of the compact form.
LEAST_VOCABULARY = 263
# A combination: whether it can run, the key to blame, and what that must be.
Rule = tuple[bool, str, str]


def validate(config: ConfigDict) -> None:
    """Raises :class:`ConfigError` for a wrong type or range, or a combination that cannot run."""
    _check_types(config, default_config(), "")
    for key, (words, test, _) in _ACCEPTED.items():
        _require(bool(test(lookup(config, key))), key, words, lookup(config, key))
    for rules in (
        _model,
        _warmstart,
        _algorithm,
        _variants,
        _replay,
        _guidance,
        _lengths,
        _overlap,
        _own_environment,
        _web,
        _collapse,
    ):
        for ok, key, words in rules(config):
            _require(ok, key, words, lookup(config, key))
    _check_memory(config)


def lookup(config: ConfigDict, key: str) -> Any:
    """The value of a dotted key."""
    for part in key.split("."):
        config = config[part]
    return config


def decay_length(config: ConfigDict) -> int:
    """Updates to the end of a cosine schedule."""
    return config.optimizer.decay_updates or config.train.num_iterations * config.train.minibatches


def unknown_key(key: str, node: Any, parent: str) -> str:
    """The message for a key that the group ``node`` (named ``parent``) does not have."""
    known = ", ".join(sorted(node)) if isinstance(node, ConfigDict) else "nothing below it"
    return f"unknown config key {key!r}; accepted in {parent or 'the top level'!r}: {known}"


def item_type(key: str, default: tuple) -> type:
    """What a tuple holds; an empty default does not say so itself."""
    return type(default[0]) if default else _ACCEPTED[key].item


def _require(ok: bool, key: str, accepted: str, found: Any) -> None:
    if not ok:
        shown = " ".join(repr(found).split())
        raise ConfigError(f"config.{key} must be {accepted}, got {shown}")


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


# -- combinations ----------------------------------------------------------------------------------


def _model(config: ConfigDict) -> Iterator[Rule]:
    m = config.model
    yield (
        not m.lora.rank or bool(m.hf_path) or config.warmstart.enabled,
        "model.lora.rank",
        "0 without model.hf_path or a warm start (adapters need a trained policy under them)",
    )
    yield (
        not m.lora_adapter or bool(m.lora.rank and m.hf_path),
        "model.lora_adapter",
        "empty without model.lora.rank > 0 and model.hf_path (the policy that it belongs to)",
    )
    yield (
        not m.lora_adapter or not config.warmstart.enabled,
        "model.lora_adapter",
        "empty with a warm start (new adapters start from the policy that it makes)",
    )
    if m.hf_path:
        return
    yield (
        config.rollout.style == "compact",
        "rollout.style",
        "'compact' without model.hf_path (a tokenizer made from scratch has no chat template)",
    )
    yield (
        m.hidden_size % (2 * m.num_heads) == 0,
        "model.hidden_size",
        f"a multiple of 2 x model.num_heads ({m.num_heads}): rotary embeddings need even heads",
    )
    yield (
        m.num_heads % m.num_kv_heads == 0,
        "model.num_kv_heads",
        f"a divisor of model.num_heads ({m.num_heads})",
    )
    yield (
        m.vocab_size >= LEAST_VOCABULARY,
        "model.vocab_size",
        f">= {LEAST_VOCABULARY} (all bytes and the special tokens)",
    )


def _warmstart(config: ConfigDict) -> Iterator[Rule]:
    w = config.warmstart
    scripted = w.source == "demonstrations"
    yield (
        bool(w.path) != scripted,
        "warmstart.path",
        f"{'empty' if scripted else 'the file or folder'} with warmstart.source {w.source!r}",
    )
    yield (
        w.source != "conversations" or config.rollout.style != "compact",
        "rollout.style",
        "a chat style with warmstart.source 'conversations' (they are written by a chat template)",
    )
    yield (
        scripted or not w.extraction_share,
        "warmstart.extraction_share",
        f"0 with warmstart.source {w.source!r} (only scripted players can play more of them)",
    )


def _algorithm(config: ConfigDict) -> Iterator[Rule]:
    r, t, arm = config.rollout, config.train, config.algorithm.arm
    yield (
        arm not in ("joint", "extractor_only") or r.num_skills >= 2,
        "rollout.num_skills",
        f">= 2 when the extractor is trained (arm {arm!r}): one has nothing to compare with",
    )
    yield (
        arm == "extractor_only" or r.num_skills * r.num_repeats >= 2,
        "rollout.num_repeats",
        ">= 2 when num_skills is 1 (a group of one episode has no advantage)",
    )
    yield (
        not r.train_sources or r.num_source_episodes >= 2,
        "rollout.num_source_episodes",
        ">= 2 with rollout.train_sources (a group of one episode has no advantage)",
    )
    truncated = config.algorithm.importance.kind == "truncated"
    yield (
        not truncated or config.algorithm.old_logprobs == "trainer",
        "algorithm.old_logprobs",
        "'trainer' with importance.kind 'truncated' (its weights correct for the engine's record already)",
    )
    yield (
        r.num_sources % t.minibatches == 0,
        "train.minibatches",
        f"a divisor of rollout.num_sources ({r.num_sources})",
    )
    length = decay_length(config)
    yield (
        config.optimizer.schedule == "constant"
        or config.optimizer.warmup_steps < length
        or not (length or config.train.num_iterations),  # nothing is trained
        "optimizer.warmup_steps",
        f"below the number of updates of a cosine schedule ({length})",
    )


def _variants(config: ConfigDict) -> Iterator[Rule]:
    algorithm = config.algorithm
    yield (
        algorithm.aggregate != "constant" or algorithm.aggregate_length > 0,
        "algorithm.aggregate_length",
        "> 0 tokens with aggregate 'constant', for example the longest answer of a turn",
    )
    yield (
        not algorithm.dual_clip or algorithm.ratio != "cispo",
        "algorithm.dual_clip",
        "0 with ratio 'cispo' (its weights have one bound for both signs)",
    )
    yield (
        algorithm.covariance.low <= algorithm.covariance.high,
        "algorithm.covariance.low",
        f"<= covariance.high ({algorithm.covariance.high})",
    )
    yield (
        not algorithm.step_credit.weight or algorithm.empty_groups == "keep",
        "algorithm.step_credit.weight",
        "0 with empty_groups 'drop' (turns have a credit where episodes have no spread)",
    )
    yield (
        not algorithm.step_credit.weight or algorithm.kl_without_spread,
        "algorithm.step_credit.weight",
        "0 with kl_without_spread False (turns have a credit where episodes have no spread)",
    )
    moves = config.train.minibatches > 1 or algorithm.old_logprobs == "rollout"
    why = "the policy is the old one there, so that the ratio is 1"
    for key, off in (("ratio", "ppo"), ("dual_clip", 0), ("covariance.kind", "none")):
        value = algorithm.covariance.kind if key == "covariance.kind" else algorithm[key]
        yield (
            moves or value in (off, "clip"),
            f"algorithm.{key}",
            f"{off!r} with one update an iteration ({why}); take train.minibatches >= 2",
        )


def _replay(config: ConfigDict) -> Iterator[Rule]:
    replay, kinds = config.replay, ("wins", "guided", "skills", "extractions")
    active = [kind for kind in kinds if replay[kind].weight]
    yield (
        replay.sequences >= len(active) and bool(replay.sequences) == bool(active),
        "replay.sequences",
        f">= {max(1, len(active))} with {', '.join(active)} on"
        if active
        else "0 while all of replay.*.weight are 0",
    )
    for kind in kinds[1:]:
        yield (
            config.algorithm.arm != "grpo" or not replay[kind].weight,
            f"replay.{kind}.weight",
            "0 in the arm 'grpo' (it has no skills)",
        )


def _guidance(config: ConfigDict) -> Iterator[Rule]:
    guidance, arm = config.guidance, config.algorithm.arm
    yield (
        not guidance.repeats or guidance.free_repeats >= 4,
        "guidance.free_repeats",
        ">= 4 with guidance.repeats (without free plays a policy forgets to play unguided; of fewer, most "
        "groups have no spread)",
    )
    for key in ("free_repeats", "repeats"):
        yield (
            not guidance[key] or arm != "grpo",
            f"guidance.{key}",
            "0 in the arm 'grpo' (it writes no skills, and all its plays are free)",
        )


def _lengths(config: ConfigDict) -> Iterator[Rule]:
    r = config.rollout
    yield (
        config.train.row_length >= r.max_length,
        "train.row_length",
        f">= rollout.max_length ({r.max_length}), the longest sequence that a rollout can give",
    )
    yield (
        r.max_length >= max(2, r.decode_window),
        "rollout.max_length",
        f">= 2 and >= rollout.decode_window ({r.decode_window})",
    )
    yield (
        r.max_length > r.max_skill_tokens,
        "rollout.max_length",
        f"> rollout.max_skill_tokens ({r.max_skill_tokens}): a skill is written after an episode",
    )


def _overlap(config: ConfigDict) -> Iterator[Rule]:
    off = not config.rollout.overlap
    yield (
        off or config.curriculum.kind == "none",
        "rollout.overlap",
        "0 with curriculum.kind 'bandit' (what is played next follows from what this iteration taught)",
    )
    yield (
        off or not config.guidance.repeats,
        "rollout.overlap",
        "0 with guidance.repeats (what guides a play follows from what the iteration before gave)",
    )
    yield (
        off or config.algorithm.importance.kind == "truncated",
        "algorithm.importance.kind",
        "'truncated' with rollout.overlap = 1 (its rollouts are one iteration off-policy)",
    )
    yield (
        off or config.checkpoint.every >= 2,
        "checkpoint.every",
        ">= 2 with rollout.overlap = 1 (nothing is played ahead over a checkpoint)",
    )


def _own_environment(config: ConfigDict) -> Iterator[Rule]:
    own = ":" in config.env.name
    yield (
        own or not config.env.options,
        "env.options",
        f"empty with env.name {config.env.name!r} (it has keys of its own)",
    )
    yield (
        not own or not config.data.games,
        "data.games",
        "empty with an environment of one's own (it has its own tasks)",
    )


def _web(config: ConfigDict) -> Iterator[Rule]:
    off = config.env.name != "mind2web"
    yield (
        off or config.rollout.context == "recent",
        "rollout.context",
        "'recent' with env.name 'mind2web' (each step is a sequence with an advantage of its own)",
    )
    yield (
        off or not config.algorithm.step_credit.weight,
        "algorithm.step_credit.weight",
        "0 with env.name 'mind2web' (its steps are scored one by one)",
    )
    yield (
        off or not config.replay.guided.weight or config.replay.guided.signal == "wins",
        "replay.guided.signal",
        "'wins' with env.name 'mind2web' (an episode's score is no advantage of each of its steps)",
    )
    yield (
        off or not config.warmstart.enabled or config.env.protocol == "stop_at_error",
        "env.protocol",
        "'stop_at_error' with a warm start (demonstrations read facts off where an episode ends)",
    )


def _collapse(config: ConfigDict) -> Iterator[Rule]:
    yield (
        config.collapse.action != "restore_best" or config.checkpoint.keep_best >= 1,
        "checkpoint.keep_best",
        ">= 1 with collapse.action 'restore_best' (there must be a best checkpoint)",
    )
    own = config.replay.kl_coef if config.replay.sequences else 0.0
    measured = any((*config.algorithm.kl_coef.values(), own))
    for role, limit in config.collapse.max_kl.items():
        yield (
            measured or not limit,
            f"collapse.max_kl.{role}",
            "0 without a KL term (with algorithm.kl_coef 0 for both roles no KL is measured)",
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
