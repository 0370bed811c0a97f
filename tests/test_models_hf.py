"""Every family against an independent numpy forward pass over the checkpoint's own tensors."""

import json
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from evolving_rl_jax import models
from evolving_rl_jax.config import default_config
from evolving_rl_jax.run.parts import model_config

st = pytest.importorskip("safetensors.numpy")

BASE = dict(
    vocab_size=37,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    rms_norm_eps=1e-5,
    hidden_act="silu",
    max_position_embeddings=64,
)
LLAMA3 = dict(
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
FAMILIES = {
    "qwen2-tied": dict(model_type="qwen2", tie_word_embeddings=True, rope_theta=1e6),
    "qwen2-untied": dict(model_type="qwen2", tie_word_embeddings=False, rope_theta=1e4),
    "qwen3": dict(model_type="qwen3", tie_word_embeddings=True, head_dim=8, rope_theta=1e6),
    "llama-3.1": dict(
        model_type="llama", rope_theta=500.0, rope_scaling=dict(rope_type="llama3", **LLAMA3)
    ),
    "llama-rope_parameters": dict(
        model_type="llama",
        head_dim=10,
        rope_parameters=dict(rope_type="llama3", rope_theta=500.0, **LLAMA3),
    ),
    "llama-multi-head": dict(model_type="llama", num_key_value_heads=None, rope_theta=1e4),
}


def checkpoint(raw, seed=0, dtype=np.float32):
    """Random tensors with the names and shapes of a Hugging Face checkpoint of ``raw``."""
    rng = np.random.default_rng(seed)
    hidden, width, heads = (
        raw["hidden_size"],
        raw["intermediate_size"],
        raw["num_attention_heads"],
    )
    dim = raw.get("head_dim") or hidden // heads
    kv = (raw["num_key_value_heads"] or heads) * dim
    shapes = {
        "model.embed_tokens.weight": (raw["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not raw.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (raw["vocab_size"], hidden)
    for i in range(raw["num_hidden_layers"]):
        p = f"model.layers.{i}."
        shapes |= {
            p + "input_layernorm.weight": (hidden,),
            p + "post_attention_layernorm.weight": (hidden,),
            p + "self_attn.q_proj.weight": (heads * dim, hidden),
            p + "self_attn.k_proj.weight": (kv, hidden),
            p + "self_attn.v_proj.weight": (kv, hidden),
            p + "self_attn.o_proj.weight": (hidden, heads * dim),
            p + "mlp.gate_proj.weight": (width, hidden),
            p + "mlp.up_proj.weight": (width, hidden),
            p + "mlp.down_proj.weight": (hidden, width),
        }
        if raw["model_type"] == "qwen2":
            for n, size in (("q", heads * dim), ("k", kv), ("v", kv)):
                shapes[p + f"self_attn.{n}_proj.bias"] = (size,)
        if raw["model_type"] == "qwen3":
            shapes |= {p + f"self_attn.{n}_norm.weight": (dim,) for n in "qk"}
    return {n: (rng.normal(size=s) * 0.4 + ("norm" in n)).astype(dtype) for n, s in shapes.items()}


def numpy_logits(raw, t, tokens):
    """float64 logits [T, V] of one row of tokens, written with loops over heads and positions."""
    heads = raw["num_attention_heads"]
    kv_heads = raw["num_key_value_heads"] or heads
    dim = raw.get("head_dim") or raw["hidden_size"] // heads
    t = {name: a.astype(np.float64) for name, a in t.items()}

    def norm(x, w):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + raw["rms_norm_eps"]) * w

    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = rope.get("rope_theta") or raw["rope_theta"]
    freqs = []
    for i in range(dim // 2):
        f = theta ** (-2 * i / dim)
        if rope:
            wavelength, old = 2 * np.pi / f, rope["original_max_position_embeddings"]
            low, high = rope["low_freq_factor"], rope["high_freq_factor"]
            if wavelength > old / low:
                f = f / rope["factor"]
            elif wavelength >= old / high:
                smooth = (old / wavelength - low) / (high - low)
                f = (1 - smooth) * f / rope["factor"] + smooth * f
        freqs.append(f)

    def rotate(x, position):
        out = np.empty_like(x)
        for i, f in enumerate(freqs):
            z = complex(x[i], x[i + dim // 2]) * np.exp(1j * f * position)
            out[i], out[i + dim // 2] = z.real, z.imag
        return out

    x = t["model.embed_tokens.weight"][tokens]
    for layer in range(raw["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        h = norm(x, t[p + "input_layernorm.weight"])

        def project(name, h=h, p=p):
            bias = t.get(p + f"self_attn.{name}_proj.bias", 0.0)
            y = h @ t[p + f"self_attn.{name}_proj.weight"].T + bias
            y = y.reshape(len(tokens), -1, dim)
            weight = t.get(p + f"self_attn.{name}_norm.weight")
            return y if weight is None else norm(y, weight)

        q, k, v = project("q"), project("k"), project("v")
        out = np.zeros((len(tokens), heads, dim))
        for head in range(heads):
            shared = head // (heads // kv_heads)
            for a in range(len(tokens)):
                query = rotate(q[a, head], a)
                s = [query @ rotate(k[b, shared], b) / np.sqrt(dim) for b in range(a + 1)]
                w = np.exp(s - np.max(s))
                out[a, head] = (w / w.sum()) @ v[: a + 1, shared]
        x = x + out.reshape(len(tokens), -1) @ t[p + "self_attn.o_proj.weight"].T
        h = norm(x, t[p + "post_attention_layernorm.weight"])
        gate = h @ t[p + "mlp.gate_proj.weight"].T
        up = h @ t[p + "mlp.up_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ t[p + "mlp.down_proj.weight"].T
    x = norm(x, t["model.norm.weight"])
    return x @ t.get("lm_head.weight", t["model.embed_tokens.weight"]).T


def write_folder(path, raw, tensors):
    path.mkdir()
    (path / "config.json").write_text(json.dumps(raw))
    st.save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_round_trip(tmp_path, family):
    raw = BASE | FAMILIES[family]
    tensors = checkpoint(raw)
    folder = write_folder(tmp_path / "in", raw, tensors)
    params, cfg = models.load_hf(folder)
    tokens = np.random.default_rng(1).integers(0, raw["vocab_size"], 21)
    hidden, _ = models.apply(params, cfg, jnp.asarray(tokens)[None])
    got = models.logits(params, cfg, hidden)[0]
    np.testing.assert_allclose(got, numpy_logits(raw, tensors, tokens), atol=1e-4)

    models.save_hf(params, cfg, tmp_path / "out")
    before, after = ((p / "model.safetensors").read_bytes() for p in (folder, tmp_path / "out"))
    assert before == after
    assert models.config_from_hf(tmp_path / "out") == cfg


def test_bfloat16_in_shards_round_trip(tmp_path):
    raw = BASE | FAMILIES["qwen3"] | {"torch_dtype": "bfloat16"}
    tensors = checkpoint(raw, dtype=ml_dtypes.bfloat16)
    params, cfg = models.load_hf(write_folder(tmp_path / "in", raw, tensors))
    assert cfg.dtype == "bfloat16" and params["embedding"].dtype == jnp.bfloat16
    models.save_hf(params, cfg, tmp_path / "out", max_shard_bytes=4000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    for name in tensors:
        with st.safe_open(tmp_path / "out" / index["weight_map"][name], "numpy") as file:
            assert file.get_slice(name).get_dtype() == "BF16"
    again, _ = models.load_hf(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, params, again)
    wide, _ = models.load_hf(tmp_path / "out", dtype="float32")
    expected = tensors["model.embed_tokens.weight"].astype(np.float32)
    np.testing.assert_array_equal(wide["embedding"], expected)

    # An export into the same folder that needs one file only must not leave the old shards behind.
    models.save_hf(params, cfg, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").glob("*.safetensors*")] == ["model.safetensors"]


def test_errors_name_what_was_found(tmp_path):
    raw = BASE | FAMILIES["qwen2-tied"]
    tensors = checkpoint(raw)

    def load(name, change):
        changed = dict(tensors)
        change(changed)
        return models.load_hf(write_folder(tmp_path / name, raw, changed))

    with pytest.raises(ValueError, match=r"model.norm.weight, found no such tensor \(1 missing\)"):
        load("a", lambda t: t.pop("model.norm.weight"))
    with pytest.raises(ValueError, match="holds model.layers.0.self_attn.o_proj.bias"):
        load("b", lambda t: t.update({"model.layers.0.self_attn.o_proj.bias": np.zeros(24)}))
    with pytest.raises(
        ValueError, match=r"up_proj.weight must have shape \(40, 24\), got \(3, 4\)"
    ):
        load("c", lambda t: t.update({"model.layers.1.mlp.up_proj.weight": np.zeros((3, 4))}))
    (tmp_path / "a" / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(ValueError, match="model.safetensors must be a safetensors file"):
        models.load_hf(tmp_path / "a")
    (tmp_path / "a" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model.safetensors must hold the model's weights"):
        models.load_hf(tmp_path / "a")


def test_export_of_options_that_no_family_has_is_an_error(tmp_path):
    cfg = models.ModelConfig(37, 24, 40, 2, 4, 2, 6, qk_norm=True, model_type="llama")
    params = models.init(cfg, jax.random.key(0))
    with pytest.raises(ValueError, match="qk_norm must be False to export a llama model"):
        models.save_hf(params, cfg, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_tied_model_with_a_head_of_its_own_is_refused(tmp_path, dtype):
    raw = BASE | FAMILIES["qwen2-tied"]
    tensors = checkpoint(raw, dtype=dtype)
    plain, _ = models.load_hf(write_folder(tmp_path / "plain", raw, tensors))
    copied = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}
    params, _ = models.load_hf(write_folder(tmp_path / "copied", raw, copied))
    assert jax.tree.all(jax.tree.map(np.array_equal, params, plain))
    changed = copied["lm_head.weight"].copy()
    changed[-1, -1] += 1
    for head in (changed, changed[:-1]):
        folder = write_folder(tmp_path / f"{len(head)}", raw, copied | {"lm_head.weight": head})
        with pytest.raises(ValueError, match="tie_word_embeddings true: .*must say false.*stale"):
            models.load_hf(folder)


@pytest.mark.parametrize("family", ["qwen2-untied", "qwen3", "llama-3.1"])
def test_transformers_reads_the_exported_config(tmp_path, family):
    transformers = pytest.importorskip("transformers")
    raw = BASE | FAMILIES[family]
    params, cfg = models.load_hf(write_folder(tmp_path / "in", raw, checkpoint(raw)))
    models.save_hf(params, cfg, tmp_path / "out")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.model_type, config.num_hidden_layers) == (cfg.model_type, 2)
    rope = getattr(config, "rope_parameters", None) or config.rope_scaling
    assert rope.get("rope_theta", cfg.rope_theta) == cfg.rope_theta
    assert rope["rope_type"] == ("llama3" if cfg.rope_scaling else "default")
    config.save_pretrained(tmp_path / "newer")
    assert models.config_from_hf(tmp_path / "newer") == cfg


def test_a_hub_id_is_fetched_and_a_local_folder_wins(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    raw = BASE | FAMILIES["qwen3"]
    folder = write_folder(tmp_path / "snapshot", raw, checkpoint(raw))
    asked = []

    def download(name, *, allow_patterns):
        asked.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    params, cfg = models.load_hf("some-one/tiny.model")
    assert {name for name, _ in asked} == {"some-one/tiny.model"} and cfg.model_type == "qwen3"
    assert "*.safetensors" in asked[0][1] and not any("*.bin" in p for _, p in asked)
    with pytest.raises(FileNotFoundError, match="tokenizer.json must belong to"):
        models.load_tokenizer("some-one/tiny.model")
    asked.clear()
    (tmp_path / "some-one").mkdir()
    folder.rename(tmp_path / "some-one" / "tiny.model")
    again, _ = models.load_hf("some-one/tiny.model")
    jax.tree.map(np.testing.assert_array_equal, params, again)
    assert not asked


@pytest.mark.parametrize("load", [models.load_hf, models.config_from_hf, models.load_tokenizer])
def test_without_a_network_the_error_names_the_id_and_what_was_tried(tmp_path, monkeypatch, load):
    hub = pytest.importorskip("huggingface_hub")

    def download(name, **_):
        raise OSError("no route\nto host")

    monkeypatch.setattr(hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        load("some-one/tiny")
    message = str(error.value)
    assert message == (
        "'some-one/tiny' must be a local folder or a model on the Hugging Face hub: no folder, and "
        "the hub (and its cache on this machine) gave: OSError: no route to host"
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match="some-one/tiny.* huggingface_hub.* not installed"):
        load("some-one/tiny")
    with pytest.raises(FileNotFoundError, match="found no such file"):
        load(tmp_path / "nothing")  # a path is not looked up


@pytest.mark.parametrize("qk_norm, family", [(False, "llama"), (True, "qwen3")])
def test_a_policy_from_scratch_comes_back_from_its_export(tmp_path, qk_norm, family):
    config = default_config()
    config.model.qk_norm = qk_norm
    cfg = model_config(config, vocab_size=50)
    params = models.init(cfg, jax.random.key(0))
    assert ("q_norm" in params["layers"]["attention"]) == qk_norm
    models.save_hf(params, cfg, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == family
    back, read = models.load_hf(tmp_path, dtype="float32")
    assert read == cfg
    jax.tree.map(np.testing.assert_array_equal, back, params)
