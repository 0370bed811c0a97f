"""Reading config.json: the published sizes, both spellings of rope, and what is refused."""

import dataclasses
import json

import pytest

from evolving_rl_jax import models

# The keys of the published files that matter here.
QWEN25_7B = dict(
    model_type="qwen2",
    vocab_size=152064,
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    rms_norm_eps=1e-6,
    rope_theta=1000000.0,
    hidden_act="silu",
    tie_word_embeddings=False,
    torch_dtype="bfloat16",
    max_position_embeddings=32768,
    use_sliding_window=False,
    sliding_window=131072,
    max_window_layers=28,
    attention_dropout=0.0,
    use_mrope=False,
)
QWEN3_1_7B = dict(
    model_type="qwen3",
    vocab_size=151936,
    hidden_size=2048,
    intermediate_size=6144,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
    rms_norm_eps=1e-6,
    rope_theta=1000000,
    rope_scaling=None,
    attention_bias=False,
    tie_word_embeddings=True,
    torch_dtype="bfloat16",
    max_position_embeddings=40960,
)
LLAMA32_1B = dict(
    model_type="llama",
    vocab_size=128256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    attention_bias=False,
    mlp_bias=False,
    tie_word_embeddings=True,
    torch_dtype="bfloat16",
    max_position_embeddings=131072,
    rope_scaling=dict(
        factor=32.0,
        high_freq_factor=4.0,
        low_freq_factor=1.0,
        original_max_position_embeddings=8192,
        rope_type="llama3",
    ),
)


def read(tmp_path, raw):
    (tmp_path / "config.json").write_text(json.dumps(raw))
    return models.config_from_hf(tmp_path)


def test_published_configs(tmp_path):
    cfg = read(tmp_path, QWEN25_7B)
    assert (cfg.head_dim, cfg.qkv_bias, cfg.qk_norm, cfg.dtype) == (128, True, False, "bfloat16")
    cfg = read(tmp_path, QWEN3_1_7B)
    assert (cfg.head_dim, cfg.qkv_bias, cfg.qk_norm) == (128, False, True)
    assert (cfg.rope_theta, cfg.tie_word_embeddings) == (1e6, True)
    cfg = read(tmp_path, LLAMA32_1B)
    assert cfg.rope_scaling == models.RopeScaling(factor=32.0)
    assert (cfg.qkv_bias, cfg.qk_norm, cfg.rms_norm_eps) == (False, False, 1e-5)
    hash(cfg)


def test_both_spellings_of_rope_are_the_same(tmp_path):
    newer = dict(LLAMA32_1B)
    scaling = newer.pop("rope_scaling")
    newer["rope_parameters"] = scaling | {"rope_theta": newer.pop("rope_theta")}
    newer["dtype"] = newer.pop("torch_dtype")
    older = dict(LLAMA32_1B)
    older["rope_scaling"] = dict(scaling)
    older["rope_scaling"]["type"] = older["rope_scaling"].pop("rope_type")
    expected = read(tmp_path, LLAMA32_1B)
    assert read(tmp_path, newer) == read(tmp_path, older) == expected


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(model_type="mistral"), "model_type must be one of qwen2, qwen3, llama, got 'mist"),
        (dict(use_sliding_window=True), "use_sliding_window must be False"),
        (dict(is_causal=False), "is_causal must be True"),
        (dict(layer_types=["sliding_attention"]), "layer_types must all be 'full_attention'"),
        (dict(rope_scaling=dict(type="yarn", factor=4.0)), "rope_type must be .*, got 'yarn'"),
        (dict(rope_scaling=dict(rope_type="llama3", factor=8.0)), "found no low_freq_factor"),
        (dict(hidden_act="gelu"), "hidden_act must be 'silu'"),
        (dict(attention_bias=True), "attention_bias must be False"),
        (dict(model_type="llama", attention_bias=True), "attention_bias must be False"),
        (dict(model_type="llama", mlp_bias=True), "mlp_bias must be False"),
        (dict(model_type="qwen3_moe"), "model_type must be one of .*, got 'qwen3_moe'"),
        (dict(num_experts=64), "num_experts must be None .*, got 64"),
        (dict(partial_rotary_factor=0.5), "partial_rotary_factor must be 1.0"),
        (dict(rope_parameters=dict(partial_rotary_factor=0.25)), "partial_rotary_factor must be 1"),
        (dict(rope_scaling=dict(rope_type="linear", factor=2.0)), "rope_type must be .* 'linear'"),
        (dict(rope_scaling=dict(rope_type="dynamic", factor=2.0)), "rope_type .* got 'dynamic'"),
        (dict(rope_scaling=dict(type="default", mrope_section=[1])), "got 'mrope_section'"),
        (dict(rope_parameters=dict(full_attention=dict(rope_theta=1.0))), "got 'full_attention'"),
        (dict(quantization_config=dict(bits=4)), "quantization_config must be None"),
        (dict(num_key_value_heads=5), "num_kv_heads must divide num_heads = 28, got 5"),
        (dict(hidden_size="big"), "hidden_size must be a positive integer, got 'big'"),
        (dict(torch_dtype="int8"), "dtype must be one of .*, got 'int8'"),
    ],
)
def test_unsupported_options_are_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=f"config.json: .*{message}"):
        read(tmp_path, QWEN25_7B | change)


def test_missing_and_malformed_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json must be a Hugging Face config.json"):
        models.config_from_hf(tmp_path)
    with pytest.raises(ValueError, match="num_attention_heads must be given"):
        read(tmp_path, dict(model_type="qwen2"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json must be JSON"):
        models.config_from_hf(tmp_path)


LLAMA3 = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)
DEFAULT = dict(rope_type="default", rope_theta=5e5)
# Forms of config.json; True = both spellings are there and transformers drops what one of them says.
ROPE_FORMS = {
    "nothing": ({}, False),
    "theta": (dict(rope_theta=5e5), False),
    "parameters": (dict(rope_parameters=DEFAULT), False),
    "parameters, theta above": (
        dict(rope_parameters=dict(rope_type="default"), rope_theta=5e5),
        False,
    ),
    "parameters before the theta above": (dict(rope_parameters=DEFAULT, rope_theta=1e4), False),
    "scaling": (dict(rope_theta=5e5, rope_scaling=LLAMA3), False),
    "scaling with a theta": (dict(rope_scaling=LLAMA3 | dict(rope_theta=5e5)), False),
    "scaling null": (dict(rope_parameters=DEFAULT, rope_scaling=None), False),
    "parameters llama3": (dict(rope_parameters=LLAMA3 | dict(rope_theta=5e5)), False),
    "both the same": (
        dict(rope_parameters=LLAMA3 | dict(rope_theta=5e5), rope_scaling=LLAMA3, rope_theta=5e5),
        False,
    ),
    "theta in one alone": (
        dict(rope_parameters=LLAMA3 | dict(rope_theta=5e5), rope_scaling=LLAMA3),
        True,
    ),
    "linear by hand": (
        dict(rope_parameters=DEFAULT, rope_scaling=dict(type="linear", factor=2.0)),
        True,
    ),
    "yarn by hand": (
        dict(rope_parameters=DEFAULT, rope_scaling=dict(rope_type="yarn", factor=4.0)),
        True,
    ),
    "llama3 by hand": (dict(rope_parameters=DEFAULT, rope_scaling=LLAMA3), True),
    "llama3 of another factor": (
        dict(
            rope_parameters=LLAMA3 | dict(rope_theta=5e5),
            rope_scaling=LLAMA3 | dict(factor=16.0),
            rope_theta=5e5,
        ),
        True,
    ),
}


@pytest.mark.parametrize("form", ROPE_FORMS)
def test_rope_is_what_transformers_reads_or_is_refused(tmp_path, form):
    transformers = pytest.importorskip("transformers")
    keys, ambiguous = ROPE_FORMS[form]
    sizes = dict(
        model_type="llama", vocab_size=100, hidden_size=64, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=8192,
    )  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(sizes | keys))
    if ambiguous:
        with pytest.raises(ValueError, match="rope_parameters and rope_scaling must say the same"):
            models.config_from_hf(tmp_path)
        return
    cfg = models.config_from_hf(tmp_path)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    if not hasattr(theirs, "rope_parameters"):  # transformers 4 keeps the keys of the file
        pytest.skip("this transformers does not resolve rope_parameters")
    theirs = theirs.rope_parameters
    assert cfg.rope_theta == theirs["rope_theta"]
    scaling = {k: v for k, v in theirs.items() if k not in ("rope_theta", "rope_type")}
    assert (cfg.rope_scaling and dataclasses.asdict(cfg.rope_scaling)) == (scaling or None)
