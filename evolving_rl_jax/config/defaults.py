"""Every key of the configuration with its default and what it accepts.

A file in ``configs/`` overrides keys of :func:`default_config`.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from evolving_rl_jax.config.accepted import (
    Accepted,
    Key,
    above_0,
    decay,
    is_json_object,
    least_0,
    least_1,
    names,
    names_attribute,
    one_of,
    share,
    sizes,
)
from evolving_rl_jax.config.methods import CURRICULUM, GUIDANCE, REPLAY, STEP_CREDIT

ARMS = ("joint", "solver_only", "extractor_only", "grpo")
# Projections of a layer that can have adapters.
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CONDITIONS = ("none", "own", "oracle", "misleading")


def default_config() -> ConfigDict:
    """The defaults: the paper's ALFWorld numbers (arXiv 2605.10663) where it gives them."""
    return ConfigDict(_defaults(KEYS))


def _defaults(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _defaults(value) for key, value in node.items()}
    return node.default if isinstance(node, Key) else node


def accepted(node: Any = None, prefix: str = "") -> dict[str, Accepted]:
    """Dotted key -> what it accepts, of those that do not accept all of their type."""
    found: dict[str, Accepted] = {}
    for key, value in (KEYS if node is None else node).items():
        if isinstance(value, dict):
            found |= accepted(value, f"{prefix}{key}.")
        elif isinstance(value, Key):
            found[f"{prefix}{key}"] = value.accepted
    return found


ENVIRONMENTS = ("alfworld", "mind2web", "miniwob", "scienceworld")
ENVIRONMENT = Accepted(
    f"{', '.join(ENVIRONMENTS)}, or package.module:attribute (docs/add-an-environment.md)",
    lambda x: x in ENVIRONMENTS or names_attribute(x),
)
JSON_OBJECT = Accepted("empty or a JSON object", lambda x: not x or is_json_object(x))

_DEVICES = Accepted(">= 1, or -1 for the devices that remain", lambda x: x >= 1 or x == -1)

_ENV = {
    "name": Key("alfworld", ENVIRONMENT),
    "options": Key("", JSON_OBJECT),  # of an environment of one's own: keywords of its make()
    "engine": one_of("native", "stock"),
    # Of each task type, on which native is compared with stock, once a machine (0 = none).
    "check_games": least_0(2),
    "memory_mb": above_0(256.0),  # most megabytes of games that a worker keeps (alfworld)
    "num_workers": least_0(2),
    "deadline_s": above_0(120.0),  # a worker that does not answer for so long is replaced
    "protocol": one_of("stop_at_error", "teacher_forced"),  # of mind2web
    "elements": one_of("all", "controls"),  # of mind2web: what of a page is shown
    "snapshot_tokens": least_1(2000),  # of mind2web, miniwob: most tokens of a page that are shown
    "browser_mb": above_0(1500.0),  # of miniwob: a browser that holds more is replaced
    "listed_actions": one_of("none", "valid"),  # of scienceworld: up to a thousand are valid
}

_DATA = {
    "games": "",  # folder with games; empty = generate them into WORKDIR/games
    "train_split": "train",
    "train_types": names(
        "pick_and_place_simple",
        "pick_clean_then_place_in_recep",
        "pick_heat_then_place_in_recep",
        "pick_cool_then_place_in_recep",
    ),
    "sites": {  # the same for mind2web: `games` is then what `evolving-rl data mind2web` wrote
        "num_train": least_1(48),
        "tasks_per_site": least_1(10),
        "test_tasks": least_0(96),  # of the split test_task
        "num_test": least_0(48),  # sites of test_website, and again of test_domain
        "tasks_per_test_site": least_1(2),
        "warmstart_sites": least_0(128),
        "tasks_per_warmstart_site": least_1(8),
    },
    "miniwob": {  # the same for miniwob: families and seeds
        "families": names(
            *("click-button", "click-checkboxes", "click-collapsible", "click-dialog-2"),
            *("click-link", "click-option", "click-tab-2", "click-test-2", "choose-list"),
            *("enter-text", "focus-text-2", "form-sequence-2", "navigate-tree", "search-engine"),
        ),
        "test_families": names(
            "click-collapsible-2", "click-scroll-list", "click-tab", "email-inbox-important"
        ),
        "train_seeds": least_1(40),  # tasks of each family; fewer where more seeds show the same
        "test_seeds": least_1(20),  # of test_task, test_family and its sources
    },
    "scienceworld": {  # the same for scienceworld
        "types": names("find-plant", "find-animal", "find-living-thing", "find-non-living-thing"),
        "variations": least_0(20),  # of each type and split (0 = all)
        "simplifications": "easy",  # names with commas; empty = none
    },
    "households": {  # what to generate when `games` is empty
        "num_train": least_1(32),
        "num_unseen": least_1(80),
        "games_per_object": least_1(4),
        "heldout_games": least_0(240),
        "rooms": one_of("compact", "scenes"),  # one small room | the alfworld package's layouts
        "warmstart_games": least_0(768),
    },
}

_MODEL = {
    "hf_path": "",  # Hugging Face model folder or hub id, or GGUF file; empty = from scratch
    "vocab_size": 640,  # upper bound of the tokenizer that is trained from scratch
    # Its "cabinet 3" is one token (copied in one step) | two: then "cabinet" is the same word in both.
    "numbered_tokens": True,
    "hidden_size": least_1(64),
    "intermediate_size": least_1(256),
    "num_layers": least_1(2),
    "num_heads": least_1(4),
    "num_kv_heads": least_1(4),
    "rope_theta": above_0(10000.0),
    "qk_norm": False,  # of a policy from scratch: normalised queries and keys (then a Qwen3 model)
    "dtype": one_of("float32", "bfloat16"),  # computed in; what is trained is always float32
    # of training; auto: splash on TPU, blockwise elsewhere
    "attention": one_of("auto", "plain", "blockwise", "splash", "pallas_gpu"),
    # Folder of a PEFT adapter to start from, with the rank, alpha and targets of lora; empty = new ones.
    "lora_adapter": "",
    "lora": {  # adapters on a frozen policy
        "rank": least_0(0),  # 0 = train all parameters instead
        "alpha": above_0(16.0),  # their product is scaled by alpha / rank
        "targets": Key(
            LORA_TARGETS,
            Accepted(
                f"a tuple of different names out of {', '.join(LORA_TARGETS)}",
                lambda x: x and set(x) <= set(LORA_TARGETS) and len(set(x)) == len(x),
            ),
        ),
    },
}

_ROLLOUT = {
    # policies from scratch, and imported ones with its markers | long | short chats of language models
    "style": one_of("compact", "chat", "chat_short"),
    # of a chat: admissible actions at every turn | at the first | what changed since | never
    "show_actions": one_of("all", "first", "changed", "none"),
    "num_sources": least_1(16),  # G
    "num_retrieved": least_1(4),  # K
    "num_skills": least_1(8),  # N
    "num_repeats": least_1(1),  # R
    # Attempts at each source task, by other draws; the extractor reads and compares them.
    "num_source_episodes": Key(1, Accepted("in 1 .. 16", lambda x: 1 <= x <= 16)),
    "train_sources": False,  # learn from them too: those of one task are a group of their own
    "max_turn_tokens": least_1(512),
    "max_skill_tokens": least_1(1536),
    "max_steps": least_1(50),  # environment steps; a task with a smaller limit keeps its own
    "temperature": above_0(1.0),
    "top_p": Key(0.9, Accepted("in (0, 1]", lambda x: 0 < x <= 1)),
    "top_k": least_0(0),
    # texts that end a solver turn, such as "</action>" with style chat
    "stop_strings": Key((), Accepted("a tuple of texts that are not empty", all, str)),
    # the whole trajectory | task and last turns, each trained apart
    "context": one_of("full", "recent"),
    "recent_turns": least_0(4),  # h: turns before the present one that a recent context shows
    # Of a recent context: about how many lines of each page an extraction shows, those around what was
    # acted on and those of the same name (0 = all that fit)
    "extraction_lines": least_0(0),
    # 1 = play the next iteration while the step trains, one iteration off-policy
    "overlap": one_of(0, 1),
    # of weights and cache in generation; empty = model.dtype
    "weights_dtype": one_of("", "float32", "bfloat16"),
    "num_slots": least_1(32),  # S
    "max_length": 16384,  # C: cache columns a slot
    "prefill_buckets": sizes(64, 256, 1024, words="a tuple of sizes >= 1"),
    "decode_window": least_1(16),
    "row_buckets": sizes(),  # engine shapes; empty = geometric up to num_slots
    "column_buckets": sizes(),  # the same up to max_length
    "sync": True,  # wait for all environments before decoding on: reproducible bit for bit
    "evaluate_invalid_skills": False,
    # Times that sources without any spread are replaced by others, before an iteration is learned from.
    "refill_rounds": least_0(0),
    "max_skill_chars": least_1(6000),
    "deadline_s": above_0(
        3600.0
    ),  # longest collection of an iteration; see docs/algorithm.md, What counts
    # of the cache, all devices; 0 = only what the device says it has free
    "memory_limit_gb": least_0(0.0),
}

_ALGORITHM = {
    "arm": one_of(*ARMS),
    "extractor_weight": 0.2,
    "solver_weight": 1.0,
    "solver_reward": above_0(10.0),
    # Of environments that score every step (mind2web):
    "extractor_score": one_of("correct_steps", "share_of_steps"),  # of an episode
    "step_pool": one_of(
        "task", "all"
    ),  # a step is compared over: its own task | the source's tasks
    "clip_low": above_0(0.1),
    "clip_high": above_0(0.15),
    "extractor_clip": {"low": least_0(0.0), "high": least_0(0.0)},  # 0 = those of the solver
    # How a group's rewards become advantages: (r - mean) / std | r - mean (Dr. GRPO) | r - mean of the
    # others (RLOO).  Without the division solver_reward is a weight; set it to 1.
    "advantage": one_of("std", "none", "leave_one_out"),
    # The clipped loss of each token | of the whole sequence (GSPO) | weights that are clipped (CISPO).
    "ratio": one_of("ppo", "gspo", "cispo"),
    "dual_clip": Key(0.0, Accepted("0 (off) or > 1", lambda x: x == 0 or x > 1)),
    # A sequence's tokens: their mean (GRPO) | mean over the batch's tokens (DAPO) | sum / aggregate_length
    "aggregate": one_of("sequence", "token", "constant"),
    "aggregate_length": least_0(0.0),  # tokens, with "constant" (Dr. GRPO)
    "covariance": {  # tokens that drive the entropy down most: no gradient | pulled to the old policy
        "kind": one_of("none", "clip", "kl"),
        "share": share(2e-4),  # of the trained tokens
        "low": 1.0,  # with "clip": smallest and largest covariance
        "high": 5.0,
        "coef": least_0(1.0),  # with "kl": of |new - old log-probability|
    },
    "step_credit": STEP_CREDIT,
    # The policy before the iteration's updates: as the trainer computes it | as the engine recorded it.
    "old_logprobs": one_of("trainer", "rollout"),
    # Tokens that top-p and top-k left out when sampling, in the ratio of the update: in it | left out.
    "sampling_mask": one_of("ignore", "replay"),
    "importance": {  # weights of tokens that other weights sampled than those that train
        "kind": one_of("none", "truncated"),
        "cap": above_0(2.0),  # largest weight
    },
    "kl_kind": one_of("low_var_kl", "k1", "k2", "k3"),
    "kl_without_spread": True,  # whether groups without spread have their KL term
    # Groups without spread: in the divisor of the loss, with KL and entropy | as if never played (DAPO).
    "empty_groups": one_of("keep", "drop"),
    "kl_coef": {"solver": least_0(0.01), "extractor": least_0(0.01)},
    "entropy_coef": {"solver": 0.0, "extractor": -0.03},
}

_SKILLS = {
    # tfidf | folder or hub id of an embedding model | sentence-transformers:NAME
    "embedder": Key("tfidf", Accepted("the name of an embedder", bool)),
    # Of the tasks retrieved for one: the most similar text | its group (room, household, site) first,
    # then the text | other groups only.
    "prefer": one_of("text", "group", "other"),
    "exclude_identical_text": False,  # from retrieval: tasks worded exactly as the query
    "min_similarity": share(0.0),  # cosine below which a skill of a bank is not used
    "prompt_tokens": least_0(0),  # longest skill text in a prompt of an evaluation (0 = no limit)
    "audit_length": True,  # refuse skills longer than rollout.max_skill_chars
    "audit_leakage": False,  # refuse commands of the source's known solution
    "audit_entities": False,  # refuse names of single things that the source saw ("mug 2")
}

_OPTIMIZER = {
    "name": one_of("adamw"),
    "learning_rate": above_0(1e-6),
    "b1": decay(0.9),
    "b2": decay(0.98),
    "eps": above_0(1e-8),
    "weight_decay": least_0(0.1),
    "clip_norm": least_0(1.0),
    "schedule": one_of("constant", "cosine"),
    # to the end of a cosine; 0 = the updates of train.num_iterations, which then must stay as it is
    "decay_updates": least_0(0),
    "warmup_steps": least_0(0),
    "max_skipped": least_1(10),  # non-finite gradients in a row that end the run
}

_TRAIN = {
    "num_iterations": least_0(150),
    "minibatches": least_1(1),  # optimizer steps an iteration, each on a share of the G sources
    "row_length": least_1(16384),  # T: tokens a packed row, also the longest trainable sequence
    "micro_batch_rows": least_1(8),
    "logprob_chunk": least_1(512),
    "remat": one_of("full", "dots", "none"),  # what the gradient recomputes; dots: all but products
    "max_unscored": least_1(3),  # iterations in a row without a scored episode that end the run
    "log_episodes": least_0(8),  # sources an iteration written to episodes/*.jsonl.gz (0 = none)
    "wandb": Key(  # W&B project that gets the metrics too; empty = none
        "",
        Accepted(
            "empty or a W&B project name (at most 128 characters, none of / \\ # ? % :)",
            lambda x: len(x) <= 128 and not set(x) & set("/\\#?%:"),
        ),
    ),
}

_COLLAPSE = {  # limits that end in a collapse; 0 = off
    "action": Key("warn", one_of("off", "warn", "stop", "restore_best").accepted),
    "patience": least_1(5),  # iterations in a row in which a limit must be broken
    "min_entropy": {"solver": least_0(0.0), "extractor": least_0(0.0)},  # nats a token
    "max_kl": {"solver": least_0(0.0), "extractor": least_0(0.0)},  # nats a token, to the reference
    "max_zero_variance": {"solver": share(0.0), "extractor": share(0.0)},  # of groups: no signal
    "min_skill_valid": share(0.05),  # of extractions
    "min_skill_tokens": least_0(0.0),
    "max_logprob_gap": least_0(0.2),  # mean between engine and trainer, nats a token
    "max_win_rate_drop": share(0.3),  # of its mean, below the best mean so far
    "window": least_1(10),  # iterations of that mean
    "max_restores": least_0(3),  # returns to the best checkpoint; after them the run is stopped
}

_WARMSTART = {
    "enabled": False,
    # Of scripted players | a file of chats (JSON lines, "messages") | what an earlier run won.
    "source": one_of("demonstrations", "conversations", "episodes"),
    "path": "",  # of the conversations: the file; of the episodes: RUN/episodes
    "skip_bad": False,  # leave out conversations that cannot be used, instead of refusing the file
    "min_reward": share(0.5),  # of episodes' extractions: share won with the skill
    "splits": names("warmstart"),  # whose tasks the teachers play
    "episodes": least_1(4000),
    "steps": Key(800, Accepted(">= 2 (the first warms up)", lambda x: x >= 2)),
    "batch_rows": least_1(32),
    "learning_rate": above_0(3e-3),
    # Of what there is to learn from, by household, site or conversation: never trained on, its loss told.
    "held_out": Key(0.0, Accepted("in [0, 1)", lambda x: 0 <= x < 1)),
    "every": least_0(500),  # steps between checkpoints, and held-out losses (0 = at the end only)
    # Of each token that is only read (task, observations, skill) beside 1 of each taught one: a policy
    # from scratch learns there which words there are and that they come back.
    "observation_weight": Key(0.0, Accepted("in [0, 1)", lambda x: 0 <= x < 1)),
    # Of the taught sequences; further episodes are played for it, of which the extraction alone is
    # taught (0 = one after every episode without a skill, about a quarter)
    "extraction_share": Key(0.0, Accepted("in [0, 1)", lambda x: 0 <= x < 1)),
    "action_noise": share(0.05),  # of turns with a random admissible action
    "follow_skill": share(0.8),  # how often the cloned solver follows a skill about its own object
    "good_extraction": share(0.4),  # of cloned extractions that state the decisive fact if seen
}

_EVAL = {
    "temperatures": Key(
        (1.0, 0.3),
        Accepted("a tuple of at least one temperature >= 0", lambda x: x and min(x) >= 0),
    ),
    "splits": names("valid_unseen", "heldout_types"),
    "conditions": names(*CONDITIONS, of=CONDITIONS),
    "num_games": least_0(0),  # games a split (0 = all)
    "every": least_0(0),  # iterations between small panels in training (0 = none)
    "every_games": least_1(64),
    "seed": least_0(1),
    # > 0: no number of an evaluation depends on slots, order or what shares a call, in bfloat16 too:
    # every call has so many rows, and nothing is shared between sessions.  0 = as in training.
    "independent_rows": least_0(0),
}

# Numbers that several keys bound together are checked in `checks`.
KEYS = {
    "seed": least_0(0),
    "env": _ENV,
    "data": _DATA,
    "model": _MODEL,
    "rollout": _ROLLOUT,
    "algorithm": _ALGORITHM,
    "replay": REPLAY,
    "curriculum": CURRICULUM,
    "guidance": GUIDANCE,
    "skills": _SKILLS,
    "optimizer": _OPTIMIZER,
    "train": _TRAIN,
    "hosts": {  # of a run of several processes
        "start_timeout_s": above_0(300.0),  # until all of them must have started
        "heartbeat_timeout_s": above_0(100.0),  # one silent for so long is dead: all end
    },
    "mesh": {  # -1 takes the devices that remain
        "data": Key(-1, _DEVICES),
        "fsdp": Key(1, _DEVICES),
        "tensor": Key(1, _DEVICES),
    },
    "checkpoint": {"every": least_1(10), "keep_last": least_1(2), "keep_best": least_0(1)},
    "collapse": _COLLAPSE,
    "warmstart": _WARMSTART,
    "eval": _EVAL,
}
