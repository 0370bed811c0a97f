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

from evolving_rl_jax.config.checks import LORA_TARGETS, ConfigError, check, item_type, unknown_key


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
            "skills": _skills_defaults(),
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
                "max_skipped": 10,  # non-finite gradients in a row that end the run
            },
            "train": {
                "num_iterations": 150,
                "minibatches": 1,  # optimizer steps an iteration, each on a share of the G sources
                "row_length": 16384,  # T: tokens a packed row, also the longest trainable sequence
                "micro_batch_rows": 8,
                "logprob_chunk": 512,
                "remat": "full",  # full | dots | none: what the gradient recomputes (dots: all but products)
                "log_episodes": 8,  # sources an iteration written to episodes/*.jsonl.gz (0 = none)
                "wandb": "",  # W&B project that gets the metrics too; empty = none
            },
            "hosts": {  # of a run of several processes
                "start_timeout_s": 300.0,  # until all of them must have started
                "heartbeat_timeout_s": 100.0,  # one that is silent for so long is dead: all end
            },
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},  # -1 takes the devices that remain
            "checkpoint": {"every": 10, "keep_last": 2, "keep_best": 1},
            "collapse": _collapse_defaults(),
            "warmstart": _warmstart_defaults(),
            "eval": {
                "temperatures": (1.0, 0.3),
                "splits": ("valid_unseen", "heldout_types"),
                "conditions": ("none", "own", "oracle", "misleading"),
                "num_games": 0,  # games a split (0 = all)
                "every": 0,  # iterations between small panels in training (0 = none)
                "every_games": 64,
                "seed": 1,
            },
        }
    )


def _env_defaults() -> dict[str, Any]:
    return {
        "name": "alfworld",  # alfworld | mind2web
        "engine": "cached",  # cached | native | stock
        "num_workers": 2,
        "deadline_s": 120.0,  # a worker that does not answer for so long is replaced
        "cache_dir": "",  # translated games; empty = WORKDIR/cache
        "protocol": "stop_at_error",  # of mind2web: stop_at_error | teacher_forced
        "snapshot_tokens": 2000,  # of mind2web: most tokens of a page that are shown
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
        "sites": {  # the same for mind2web: `games` is then what `evolving-rl data mind2web` wrote
            "num_train": 48,
            "tasks_per_site": 10,
            "test_tasks": 96,  # of the split test_task
            "num_test": 48,  # sites of test_website, and again of test_domain
            "tasks_per_test_site": 2,
            "warmstart_sites": 128,
            "tasks_per_warmstart_site": 8,
        },
        "households": {  # what to generate when `games` is empty
            "num_train": 32,
            "num_unseen": 80,
            "games_per_object": 4,
            "heldout_games": 240,
            "rooms": "compact",  # compact (one small room) | scenes (the layouts of the alfworld package)
            "warmstart_games": 768,
        },
    }


def _model_defaults() -> dict[str, Any]:
    return {
        "hf_path": "",  # Hugging Face model folder or hub id; empty = train from scratch
        "vocab_size": 640,  # upper bound of the tokenizer that is trained from scratch
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 4,
        "rope_theta": 10000.0,
        "qk_norm": False,  # of a policy from scratch: normalised queries and keys (then a Qwen3 model)
        "dtype": "float32",  # compute type; what is trained is always kept in float32
        # of training; auto: splash on TPU, blockwise elsewhere (plain | blockwise | splash | pallas_gpu)
        "attention": "auto",
        "lora": {  # adapters on a frozen policy
            "rank": 0,  # 0 = train all parameters instead
            "alpha": 16.0,  # their product is scaled by alpha / rank
            "targets": LORA_TARGETS,
        },
    }


def _rollout_defaults() -> dict[str, Any]:
    return {
        "style": "compact",  # compact (policies from scratch) | chat (imported language models)
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
        "stop_strings": (),  # texts that end a solver turn, such as "</action>" with style chat
        "context": "full",  # full (the whole trajectory) | recent (task and last turns, each trained apart)
        "recent_turns": 4,  # h: turns before the present one that a recent context shows
        "overlap": 0,  # 1 = play the next iteration while the step trains, one iteration off-policy
        "weights_dtype": "",  # of weights and cache in generation; empty = model.dtype
        "num_slots": 32,  # S
        "max_length": 16384,  # C: cache columns a slot
        "prefill_buckets": (64, 256, 1024),
        "decode_window": 16,
        "row_buckets": (),  # engine shapes; empty = geometric up to num_slots
        "column_buckets": (),  # the same up to max_length
        "sync": True,  # wait for all environments before decoding on: reproducible bit for bit
        "evaluate_invalid_skills": False,
        "max_skill_chars": 6000,
        "deadline_s": 3600.0,  # longest collection of an iteration; what is unfinished is masked
        "memory_limit_gb": 0.0,  # of the cache, all devices; 0 = only what the device says it has free
    }


def _skills_defaults() -> dict[str, Any]:
    return {
        # tfidf | folder or hub id of an embedding model | sentence-transformers:NAME
        "embedder": "tfidf",
        "exclude_identical_text": False,  # from retrieval: tasks worded exactly as the query
        "min_similarity": 0.0,  # cosine below which a skill of a bank is not used
        "prompt_tokens": 0,  # longest skill text in a prompt of an evaluation (0 = no limit)
        "audit_length": True,  # refuse skills longer than rollout.max_skill_chars
        "audit_leakage": False,  # refuse commands of the source's known solution
        "audit_entities": False,  # refuse names of single things that the source saw ("mug 2")
    }


def _algorithm_defaults() -> dict[str, Any]:
    return {
        "arm": "joint",
        "extractor_weight": 0.2,
        "solver_weight": 1.0,
        "solver_reward": 10.0,
        # Of environments that score every step (mind2web):
        "extractor_score": "correct_steps",  # of an episode: correct_steps | share_of_steps
        "step_pool": "task",  # a step is compared over: task (its own task) | all (the source's tasks)
        "clip_low": 0.1,
        "clip_high": 0.15,
        "importance": {  # weights of tokens that other weights sampled than those that train
            "kind": "none",  # none | truncated
            "cap": 2.0,  # largest weight
        },
        "kl_kind": "low_var_kl",
        "kl_coef": {"solver": 0.01, "extractor": 0.01},
        "entropy_coef": {"solver": 0.0, "extractor": -0.03},
    }


def _collapse_defaults() -> dict[str, Any]:
    return {  # limits that end in a collapse; 0 = off
        "action": "warn",  # off | warn | stop | restore_best
        "patience": 5,  # iterations in a row in which a limit must be broken
        "min_entropy": {"solver": 0.0, "extractor": 0.0},  # nats a token
        "max_kl": {"solver": 0.0, "extractor": 0.0},  # nats a token, to the reference
        "max_zero_variance": {"solver": 0.0, "extractor": 0.0},  # share of groups without signal
        "min_skill_valid": 0.05,  # share of extractions
        "min_skill_tokens": 0.0,
        "max_logprob_gap": 0.2,  # mean between engine and trainer, nats a token
        "max_win_rate_drop": 0.3,  # of its mean, below the best mean so far
        "window": 10,  # iterations of that mean
        "max_restores": 3,  # returns to the best checkpoint; after them the run is stopped
    }


def _warmstart_defaults() -> dict[str, Any]:
    return {
        "enabled": False,
        "episodes": 4000,
        "steps": 800,
        "batch_rows": 32,
        "learning_rate": 3e-3,
        "action_noise": 0.05,  # share of turns with a random admissible action
        "follow_skill": 0.8,  # how often the cloned solver follows a skill about its own object
        "good_extraction": 0.4,  # share of cloned extractions that state the decisive fact if seen
    }


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
    validate(config)
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
            parts = [p.strip() for p in text.strip("()[] ").split(",") if p.strip()]
            kind = item_type(key, old)
            return tuple(kind(p.strip("'\"")) for p in parts)
        return type(old)(text)
    except (KeyError, ValueError):
        kind = type(old).__name__
        raise ConfigError(f"config.{key} must be a {kind} like {old!r}, got {text!r}") from None


def validate(config: ConfigDict) -> None:
    """Raises :class:`ConfigError` for a wrong type or range, or a combination that cannot run."""
    check(config, default_config())


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
    nothing: runs of an earlier version can be read and gone on with.
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
    config = ConfigDict(_filled(_tuples(data), default_config().to_dict()))
    validate(config)
    return config.lock()


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


# Keys that may change when a run goes on in its folder: how long, where and how often, never what.
RESUMABLE = (
    *("train.num_iterations", "env.num_workers", "env.deadline_s", "rollout.deadline_s"),
    *("checkpoint", "collapse", "mesh", "hosts", "train.wandb"),
)


def first_difference(
    old: ConfigDict, new: ConfigDict, prefix: str = ""
) -> tuple[str, Any, Any] | None:
    """(key, old value, new value) of the first difference, or None; RESUMABLE keys may differ."""
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
