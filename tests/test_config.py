"""Configurations: what is accepted, and the one line that says what is not."""

import json
import pathlib
import re

import pytest

from evolving_rl_jax import config as config_lib
from evolving_rl_jax.config import ConfigError, default_config, load_config, set_key, validate
from evolving_rl_jax.config.checks import LEAST_VOCABULARY
from evolving_rl_jax.config.defaults import accepted
from evolving_rl_jax.rollout.prompts import COMPACT_SPECIAL_TOKENS

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


def changed(**values):
    """The defaults with ``group__key=value`` set, without any check."""
    config = default_config()
    for name, value in values.items():
        *groups, leaf = name.split("__")
        node = config
        for group in groups:
            node = node[group]
        with node.ignore_type(), node.unlocked():
            node[leaf] = value
    return config


def error(call, *args) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


def leaves(config, prefix=""):
    for key, value in config.items():
        if hasattr(value, "items"):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_file_in_configs_is_valid_and_documented(path):
    config = load_config(str(path))
    assert config.is_locked
    text = path.read_text(encoding="utf-8")
    for word in ("Command:", "Hardware:", "Time:", "Expected:"):
        assert word in text
    assert f"evolving-rl train --config=configs/{path.name} --workdir=" in text


def test_the_defaults_are_valid_and_new_every_time():
    validate(default_config())
    one = default_config()
    one.rollout.num_skills = 3
    assert default_config().rollout.num_skills == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # one key
        ({"seed": "one"}, "config.seed must be a int like 0, got 'one'"),
        ({"seed": True}, "config.seed must be a int like 0, got True"),
        ({"seed": None}, "config.seed must be a int like 0, got None"),
        ({"rollout__num_slots": 32.0}, "config.rollout.num_slots must be a int like 32, got 32.0"),
        ({"rollout__sync": 1}, "config.rollout.sync must be a bool like True, got 1"),
        ({"eval__splits": ("a", 1)}, "config.eval.splits must be a tuple like"),
        ({"eval__temperatures": ()}, "config.eval.temperatures must be a tuple of at least one"),
        ({"rollout__row_buckets": (8.0,)}, "config.rollout.row_buckets must be a tuple like"),
        ({"rollout__prefill_buckets": (0, 8)}, "must be a tuple of sizes >= 1, got (0, 8)"),
        ({"mesh": 3}, "config.mesh must be a group of keys (data, fsdp, tensor), got 3"),
        ({"mesh__data": 0}, "config.mesh.data must be >= 1, or -1 for the devices that remain"),
        ({"algorithm__arm": "both"}, "config.algorithm.arm must be one of joint, solver_only, "),
        (
            {"env__engine": "fast"},
            "config.env.engine must be one of native, stock, got 'fast'",
        ),
        (
            {"rollout__style": "x"},
            "config.rollout.style must be one of compact, chat, chat_short, got 'x'",
        ),
        ({"eval__conditions": ("own", "best")}, "config.eval.conditions must be a tuple of none, "),
        ({"rollout__top_p": 0.0}, "config.rollout.top_p must be in (0, 1], got 0.0"),
        ({"rollout__temperature": 0.0}, "config.rollout.temperature must be > 0, got 0.0"),
        ({"optimizer__learning_rate": float("nan")}, "learning_rate must be finite, got nan"),
        ({"optimizer__b2": 1.0}, "config.optimizer.b2 must be in [0, 1), got 1.0"),
        ({"env__num_workers": -1}, "config.env.num_workers must be >= 0, got -1"),
        ({"checkpoint__every": 0}, "config.checkpoint.every must be >= 1, got 0"),
        ({"warmstart__action_noise": 1.5}, "config.warmstart.action_noise must be in [0, 1]"),
        # combinations
        ({"rollout__num_skills": 1}, "config.rollout.num_skills must be >= 2 when the extractor"),
        (
            {"algorithm__arm": "grpo", "rollout__num_skills": 1},
            "config.rollout.num_repeats must be >= 2 when num_skills is 1",
        ),
        (
            {"algorithm__arm": "extractor_only", "rollout__num_skills": 1},
            "config.rollout.num_skills must be >= 2 when the extractor is trained",
        ),
        (
            {"rollout__num_slots": 4096, "rollout__memory_limit_gb": 8.0},
            "config.rollout.num_slots x max_length must fit memory_limit_gb = 8.0, got 4096 x",
        ),
        (
            {"train__row_length": 16383},
            "config.train.row_length must be >= rollout.max_length (16384), the longest sequence",
        ),
        (
            {"train__minibatches": 3},
            "config.train.minibatches must be a divisor of rollout.num_sources (16), got 3",
        ),
        (
            {"rollout__max_length": 8, "rollout__decode_window": 9},
            "config.rollout.max_length must be >= 2 and >= rollout.decode_window (9), got 8",
        ),
        (
            {"rollout__max_length": 1536},
            "config.rollout.max_length must be > rollout.max_skill_tokens (1536): a skill is written",
        ),
        ({"model__num_heads": 3}, "config.model.hidden_size must be a multiple of 2 x model.num_h"),
        ({"model__num_kv_heads": 3}, "config.model.num_kv_heads must be a divisor of model.num_he"),
        ({"model__vocab_size": 200}, "config.model.vocab_size must be >= 263"),
        (
            {
                "model__hf_path": "x",
                "model__lora__rank": 1,
                "model__lora_adapter": "y",
                "warmstart__enabled": True,
            },
            "config.model.lora_adapter must be empty with a warm start",
        ),
        (
            {
                "optimizer__schedule": "cosine",
                "optimizer__warmup_steps": 150,
            },
            "config.optimizer.warmup_steps must be below the number of updates of a cosine",
        ),
    ],
)
def test_what_cannot_run_is_one_line_with_the_key(changes, message):
    assert message in error(validate, changed(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm__arm": "solver_only", "rollout__num_skills": 1, "rollout__num_repeats": 2},
        {"algorithm__arm": "extractor_only", "rollout__num_repeats": 1},
        {"rollout__memory_limit_gb": 8.0, "rollout__num_slots": 16},
        {"optimizer__learning_rate": 1},
        {"rollout__row_buckets": (8, 16)},
        {"env__num_workers": 0},
    ],
)
def test_unusual_but_possible_settings_are_accepted(changes):
    validate(changed(**changes))


def test_unknown_and_missing_keys_are_named_with_what_is_known():
    message = error(validate, changed(rollout__num_skils=3))
    assert message.startswith("unknown config key 'rollout.num_skils'; accepted in 'rollout': ")
    assert "num_skills" in message
    assert "accepted in 'the top level': algorithm, " in error(validate, changed(rolout=3))
    config = default_config()
    del config.train.remat
    assert "config.train.remat must be present" in error(validate, config)


ANY_NUMBER = {
    # a weight or a coefficient of either sign
    *("algorithm.extractor_weight", "algorithm.solver_weight"),
    *("algorithm.entropy_coef.solver", "algorithm.entropy_coef.extractor"),
    # a covariance, of either sign
    *("algorithm.covariance.low", "algorithm.covariance.high"),
    # bounded by other keys
    *("model.vocab_size", "rollout.max_length"),
}


def test_every_number_and_tuple_says_what_it_accepts():
    known = config_lib.flat(default_config())
    bounded = set(accepted())
    assert bounded <= set(known)
    numbers = {k for k, v in known.items() if type(v) in (int, float, tuple)}
    assert numbers - bounded == ANY_NUMBER
    assert len(COMPACT_SPECIAL_TOKENS) + 256 == LEAST_VOCABULARY


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("seed", "7", 7),
        ("optimizer.learning_rate", "3e-4", 3e-4),
        ("optimizer.learning_rate", "1", 1.0),
        ("rollout.sync", "False", False),
        ("warmstart.enabled", "true", True),
        ("data.games", "/tmp/a=b", "/tmp/a=b"),
        ("eval.temperatures", "(1.0, 0.3)", (1.0, 0.3)),
        ("eval.temperatures", "0.5", (0.5,)),
        ("rollout.row_buckets", "8,16", (8, 16)),
        ("rollout.row_buckets", "()", ()),
        ("rollout.row_buckets", "[8, 16]", (8, 16)),
        ("rollout.stop_strings", "]", ("]",)),
        ("rollout.stop_strings", "(a) b", ("(a) b",)),
        ("rollout.stop_strings", "['[END]', ')']", ("[END]", ")")),
        ("eval.splits", "'train', \"valid_seen\"", ("train", "valid_seen")),
        ("algorithm.kl_coef.solver", "0", 0.0),
    ],
)
def test_overrides_take_the_type_of_the_key(key, text, value):
    config = default_config()
    set_key(config, key, text)
    found = config
    for part in key.split("."):
        found = found[part]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("seed", "1.5", "config.seed must be a int like 0, got '1.5'"),
        ("rollout.sync", "maybe", "config.rollout.sync must be a bool like True, got 'maybe'"),
        ("rollout.row_buckets", "8,x", "config.rollout.row_buckets must be a tuple like (), got"),
        ("rollout", "3", "--config.rollout must be a single key, got a group of keys (column"),
        ("rollout.nothing", "3", "unknown config key 'rollout.nothing'; accepted in 'rollout': "),
        ("rolout.style", "3", "unknown config key 'rolout.style'; accepted in 'the top level': "),
        ("seed.deep", "3", "unknown config key 'seed.deep'; accepted in 'seed': nothing below it"),
    ],
)
def test_overrides_that_cannot_be_used(key, text, message):
    assert message in error(set_key, default_config(), key, text)


BODY = "from evolving_rl_jax.config import default_config\ndef get_config():\n    "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "must define get_config(), got AttributeError"),
        ("def get_config(:", "must define get_config(), got SyntaxError"),
        ("import no_such_module", "must define get_config(), got ModuleNotFoundError"),
        ("def get_config(): return undefined", "must define get_config(), got NameError"),
        ("def get_config(): return {'seed': 1}", "must return a ConfigDict, got dict"),
        (BODY + "c = default_config(); c.sede = 1; return c", "unknown config key 'sede'"),
        (BODY + "c = default_config(); c.seed = 'x'; return c", "got TypeError"),
        (BODY + "c = default_config(); c.rollout.num_skills = 1; return c", "num_skills must be"),
    ],
)
def test_broken_config_files_are_named(tmp_path, text, message):
    path = tmp_path / "broken.py"
    path.write_text(text, encoding="utf-8")
    assert message in error(load_config, str(path))


def test_keys_younger_than_a_run_get_their_defaults(tmp_path):
    config = default_config()
    config.train.num_iterations = 7
    data = json.loads(config_lib.to_json(config))
    del data["collapse"], data["train"]["wandb"]
    file = tmp_path / "config.json"
    file.write_text(json.dumps(data))
    assert config_lib.from_json(file).to_dict() == config.to_dict()
    file.write_text(json.dumps({**data, "colapse": {}}))  # what is not known is still refused
    assert "colapse" in error(config_lib.from_json, file)


def test_missing_config_files_are_named(tmp_path):
    missing = str(tmp_path / "none.py")
    assert f"got {missing!r} (no such file)" in error(load_config, missing)
    assert "(not a .py file)" in error(load_config, str(tmp_path))


def test_overrides_are_checked_with_the_rest():
    path = str(ROOT / "configs" / "debug.py")
    assert load_config(path, {"seed": "3", "eval.temperatures": "1.0,0.5"}).seed == 3
    assert "num_skills must be >= 2" in error(load_config, path, {"rollout.num_skills": "1"})


def test_json_keeps_everything(tmp_path):
    for path in CONFIGS:
        config = load_config(str(path))
        file = tmp_path / "config.json"
        file.write_text(config_lib.to_json(config), encoding="utf-8")
        again = config_lib.from_json(file)
        assert again.to_dict() == config.to_dict() and again.is_locked
        assert config_lib.to_json(again) == config_lib.to_json(config)
        assert config_lib.first_difference(config, again) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"seed": 1}', '{"seed": {"a": 1}}'])
def test_json_of_something_else_is_an_error_that_names_the_file(tmp_path, text):
    file = tmp_path / "config.json"
    file.write_text(text, encoding="utf-8")
    message = error(config_lib.from_json, file)
    assert "config.json" in message or "config." in message
    assert "no such file" in error(config_lib.from_json, tmp_path / "none.json").lower()


def test_a_run_of_the_engine_that_is_no_more_is_read_as_native(tmp_path):
    """``cached`` and ``native`` gave the same text, so such a run can be evaluated and gone on with."""
    data = json.loads(config_lib.to_json(default_config()))
    data["env"] |= {"engine": "cached", "cache_dir": "/somewhere"}
    del data["env"]["check_games"]
    file = tmp_path / "config.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    assert config_lib.to_json(config_lib.from_json(file)) == config_lib.to_json(default_config())
    assert config_lib.first_difference(config_lib.from_json(file), default_config()) is None


def test_engines_and_keys_that_are_no_more_are_refused_by_name():
    config = default_config()
    set_key(config, "env.engine", "cached")
    assert error(validate, config) == (
        "config.env.engine must be one of native, stock, got 'cached'"
    )
    message = error(set_key, default_config(), "env.cache_dir", "/tmp")
    assert message.startswith(
        "unknown config key 'env.cache_dir'; accepted in 'env': browser_mb, check"
    )


def test_the_first_difference_is_found_and_what_may_change_is_not():
    old = default_config()
    assert config_lib.first_difference(old, changed(seed=1)) == ("seed", 0, 1)
    deep = changed(algorithm__kl_coef__solver=0.5)
    assert config_lib.first_difference(old, deep) == ("algorithm.kl_coef.solver", 0.01, 0.5)
    for name, value in (
        ("train__num_iterations", 3),
        ("env__num_workers", 9),
        ("env__deadline_s", 9.0),
        ("env__engine", "stock"),
        ("checkpoint__every", 3),
        ("mesh__fsdp", 2),
    ):
        assert config_lib.first_difference(old, changed(**{name: value})) is None
    assert set(config_lib.RESUMABLE) <= set(leaves(old)) | set(old)


def test_the_cache_size_is_that_of_the_real_cache():
    from evolving_rl_jax.generate.cache import cache_bytes
    from evolving_rl_jax.models import ModelConfig

    for dtype in ("float32", "bfloat16"):
        config = changed(model__dtype=dtype, model__num_kv_heads=2, rollout__num_slots=3)
        m = config.model
        model = ModelConfig(
            vocab_size=m.vocab_size,
            hidden_size=m.hidden_size,
            intermediate_size=m.intermediate_size,
            num_layers=m.num_layers,
            num_heads=m.num_heads,
            num_kv_heads=m.num_kv_heads,
            head_dim=m.hidden_size // m.num_heads,
            dtype=dtype,
        )
        expected = cache_bytes(model, 3, config.rollout.max_length)
        assert config_lib.cache_gigabytes(config) * 1e9 == pytest.approx(expected)


def test_every_key_is_used_somewhere():
    """A key that nothing reads is a promise that nothing keeps."""
    sources = [p for p in (ROOT / "evolving_rl_jax").rglob("*.py") if p.parent.name != "config"]
    text = "\n".join(p.read_text(encoding="utf-8") for p in sources)
    keys = leaves(default_config())
    unused = [k for k in keys if not re.search(rf"\b{k.split('.')[-1]}\b", text)]
    assert unused == []


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("ratio", "gspo", "'ppo' with one update an iteration"),
        ("dual_clip", 3.0, "0 with one update an iteration"),
        ("covariance.kind", "kl", "'none' with one update an iteration"),
        ("aggregate", "constant", "aggregate_length must be > 0 tokens"),
        ("covariance.low", 9.0, "covariance.low must be <= covariance.high"),
    ],
)
def test_loss_variants_that_would_do_nothing_are_refused(key, value, words):
    config = default_config()
    config.algorithm.update_from_flattened_dict({key: value})
    with pytest.raises(ConfigError, match=re.escape(words)):
        config_lib.validate(config)
    if "one update" in words:
        config.train.minibatches = 2
        config_lib.validate(config)
