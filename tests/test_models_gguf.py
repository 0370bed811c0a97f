"""GGUF files, written here with the package's writer, against ``transformers`` and Hugging Face folders.

`write_gguf` de-quantises with the package too; what its numbers give is computed by ``transformers``: stored
for the golden models, live where torch is installed.
"""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chat_models import FAMILIES as CHATS
from chat_models import make_tokenizer_folder

from evolving_rl_jax import models
from evolving_rl_jax.cli.main import main

pytest.importorskip("gguf")
from gguf_files import Q, checkpoint, read_folder, write_folder, write_gguf

GOLDEN = pathlib.Path(__file__).parent / "golden" / "models"
# Their rope scaling is made for 64 positions; a file says Llama 3's own, for 8192.
FAMILIES = sorted(p.name for p in GOLDEN.iterdir() if p.is_dir() and p.name != "llama3")
KINDS = ("Q8_0", "Q4_1", "Q4_0", "Q5_1", "F16", "BF16")
TINY = dict(
    vocab_size=512,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
    rope_theta=10_000.0,
    tie_word_embeddings=True,
)


def tiny(model_type="llama", **options):
    """config.json of a tiny model; Qwen2 has no heads of another size."""
    raw = TINY | {"model_type": model_type} | options
    return raw | ({"head_dim": 8} if model_type == "qwen2" else {})


def our_logits(params, cfg, tokens):
    hidden, _ = models.apply(params, cfg, jnp.asarray(tokens))
    return np.asarray(models.logits(params, cfg, hidden))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer_folder(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def file(tmp_path, tokenizer):
    """A whole file of a tiny Llama, quantised."""
    raw = tiny()
    write_gguf(tmp_path / "m.gguf", raw, checkpoint(raw), kind=Q.Q8_0, tokenizer=tokenizer)
    return tmp_path / "m.gguf"


# -- weights and config -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_transformers(family, tmp_path):
    raw, tensors = read_folder(GOLDEN / family)
    write_gguf(tmp_path / "m.gguf", raw, tensors)
    params, cfg = models.load_gguf(tmp_path / "m.gguf")
    assert cfg == models.config_from_hf(GOLDEN / family)
    with np.load(GOLDEN / family / "logits.npz") as stored:
        got = our_logits(params, cfg, stored["tokens"])
        assert np.abs(got - stored["logits"]).max() < 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ("llama", "qwen2", "qwen3"))
def test_quantised_weights_are_those_of_the_package(family, kind, tmp_path):
    raw = tiny(family, tie_word_embeddings=family != "llama")
    meant = write_gguf(tmp_path / "m.gguf", raw, checkpoint(raw), kind=Q[kind])
    params, cfg = models.load_hf(tmp_path / "m.gguf")
    wanted, same = models.load_hf(write_folder(tmp_path / "hf", raw, meant))
    assert cfg == same
    jax.tree.map(np.testing.assert_array_equal, params, wanted)


@pytest.mark.parametrize("kind", ("Q4_1", "Q8_0"))
@pytest.mark.parametrize("family", ("llama", "qwen2", "qwen3"))
def test_transformers_computes_the_same_with_the_packages_tensors(family, kind, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    raw = tiny(family)
    meant = write_gguf(tmp_path / "m.gguf", raw, checkpoint(raw), kind=Q[kind])
    folder = write_folder(tmp_path / "hf", raw, meant)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    tokens = np.random.default_rng(0).integers(raw["vocab_size"], size=(2, 40))
    with torch.no_grad():
        wanted = model(torch.from_numpy(tokens)).logits.numpy()
    got = our_logits(*models.load_gguf(tmp_path / "m.gguf"), tokens)
    assert np.abs(got - wanted).max() < 1e-4


def test_weights_come_in_the_dtype_and_the_shards_asked_for(file):
    params, cfg = models.load_gguf(file, dtype="bfloat16")
    exact, _ = models.load_gguf(file)
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"bfloat16"}
    assert {x.dtype.name for x in jax.tree.leaves(exact)} == {"float32"} and cfg.dtype == "float32"
    jax.tree.map(
        np.testing.assert_array_equal, params, jax.tree.map(lambda x: x.astype("bfloat16"), exact)
    )
    mesh = jax.make_mesh((jax.device_count(),), ("fsdp",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shared, _ = models.load_gguf(file, shardings=jax.tree.map(lambda _: spread, params))
    jax.tree.map(np.testing.assert_array_equal, shared, exact)


def llama3_factors(theta, dim, factor, low=1.0, high=4.0, original=8192):
    """The tensor that llama.cpp's converter writes for Llama 3's rope scaling."""
    factors = []
    for i in range(0, dim, 2):
        wavelength = 2 * math.pi * theta ** (i / dim)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.asarray(factors, np.float32)


@pytest.mark.parametrize("factor", (8.0, 32.0))
def test_the_factors_of_llama_3_become_its_scaling(factor, tmp_path):
    raw = tiny(head_dim=16, rope_theta=500_000.0)
    factors = llama3_factors(5e5, 16, factor)
    assert len(set(factors.tolist())) > 2  # kept, blended, stretched
    write_gguf(tmp_path / "m.gguf", raw, checkpoint(raw), extra={"rope_freqs.weight": factors})
    _, cfg = models.load_gguf(tmp_path / "m.gguf")
    assert cfg.rope_scaling == models.RopeScaling(factor, 1.0, 4.0, 8192)


# -- tokenizer and chat template ------------------------------------------------------------------------

TEXTS = (
    "Task: put a hot mug in fridge 12.\n\n- go to cabinet 3",
    " leading and trailing  spaces \t\n \r\n x",
    "naïve café — 你好 🙂 I'LL don't 12345 3.14 a1b2",
    "<|im_end|> and <|eot_id|> are text here",
)
NAMES = {"chatml": "qwen2", "llama3": "llama-bpe"}


@pytest.mark.parametrize("family", sorted(NAMES))
def test_the_tokenizer_is_that_of_the_folder(family, tmp_path):
    folder = make_tokenizer_folder(tmp_path / "tokenizer", family)
    raw = tiny()
    write_gguf(tmp_path / "m.gguf", raw, checkpoint(raw), tokenizer=folder, pre=NAMES[family])
    wanted, got = models.load_tokenizer(folder), models.load_tokenizer(tmp_path / "m.gguf")
    for name in ("vocab_size", "special_ids", "eos_id", "pad_id", "bos_id", "stop_ids"):
        assert getattr(got, name) == getattr(wanted, name), name
    assert got.chat_template == wanted.chat_template == CHATS[family][0]
    for text in TEXTS:
        assert got.decode(got.encode(text)) == text
        if family == "chatml":  # a family's numbers are cut in its own way, see the next test
            assert got.encode(text) == wanted.encode(text)


# Texts cut as the public tokenizers of these names cut them.
PIECES = {
    "qwen2": ["It", "'s", " ", "1", "2", "3", "4", ",", " don", "'T", "!!\n\n", "  ", " x"],
    "llama-bpe": ["It", "'s", " ", "123", "4", ",", " don", "'T", "!!\n\n", "  ", " x"],
    "smollm": ["It", "'s", " ", "1", "2", "3", "4", ",", " don", "'", "T", "!!", "\n\n  ", " x"],
    "gpt-2": ["It", "'s", " 1234", ",", " don", "'", "T", "!!", "\n\n  ", " x"],
}


@pytest.mark.parametrize("name", sorted(PIECES))
def test_text_is_cut_as_the_name_says(name, tmp_path, tokenizer):
    import tokenizers

    raw = tiny()
    write_gguf(tmp_path / "m.gguf", raw, checkpoint(raw), tokenizer=tokenizer, pre=name)
    loaded = models.load_tokenizer(tmp_path / "m.gguf")
    backend = tokenizers.Tokenizer.from_file(str(loaded.path / "tokenizer.json"))
    text = "It's 1234, don'T!!\n\n   x"
    spans = [span for _, span in backend.pre_tokenizer.pre_tokenize_str(text)]
    assert [text[a:b] for a, b in spans] == PIECES[name]


def test_special_user_defined_and_unused_tokens(tmp_path, tokenizer):
    raw, ids = tiny(), {}
    known = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = {**known["model"]["vocab"], **{t["content"]: t["id"] for t in known["added_tokens"]}}
    tokens = [t for t, _ in sorted(vocab.items(), key=lambda item: item[1])]
    rows = 512 - len(tokens)
    assert rows > 2
    kinds = [3 if t.startswith("<|") else 1 for t in tokens]
    ids = {"<think>": len(tokens), "[PAD0]": len(tokens) + 1}
    write_gguf(
        tmp_path / "m.gguf", raw, checkpoint(raw), tokenizer=tokenizer,
        metadata={
            "tokenizer.ggml.tokens": [*tokens, "<think>", "[PAD0]"],
            "tokenizer.ggml.token_type": [*kinds, 4, 5],
            "tokenizer.ggml.eot_token_id": vocab["<|endoftext|>"],
            "tokenizer.ggml.bos_token_id": vocab["<|im_start|>"],
            "tokenizer.ggml.add_bos_token": True,
        },
    )  # fmt: skip
    got = models.load_tokenizer(tmp_path / "m.gguf")
    assert got.special_ids["<think>"] == ids["<think>"] and "[PAD0]" not in got.special_ids
    assert got.vocab_size == ids["<think>"] + 1
    assert got.stop_ids == (vocab["<|im_end|>"], vocab["<|endoftext|>"])
    file = json.loads((got.path / "tokenizer.json").read_text(encoding="utf-8"))
    special = {t["content"]: t["special"] for t in file["added_tokens"]}
    assert special["<|im_end|>"] and not special["<think>"]
    import tokenizers

    plain = tokenizers.Tokenizer.from_file(str(got.path / "tokenizer.json"))
    assert plain.encode("x").ids[0] == vocab["<|im_start|>"]


# -- the command --------------------------------------------------------------------------------------


def test_import_writes_the_folder_once(file, tmp_path, capsys):
    assert main(["import", f"--gguf={file}", f"--out={tmp_path / 'hf'}"]) == 0
    assert "llama model in" in capsys.readouterr().out
    (params, cfg), (wanted, same) = models.load_hf(tmp_path / "hf"), models.load_gguf(file)
    assert cfg == same
    jax.tree.map(np.testing.assert_array_equal, params, wanted)
    ours, theirs = models.load_tokenizer(tmp_path / "hf"), models.load_tokenizer(file)
    assert ours.encode(TEXTS[0]) == theirs.encode(TEXTS[0])
    assert (ours.stop_ids, ours.chat_template) == (theirs.stop_ids, theirs.chat_template)
    models.save_hf(params, cfg, tmp_path / "again", tokenizer_dir=file)  # as `export` does
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes()


def test_import_in_bfloat16(file, tmp_path):
    assert main(["import", f"--gguf={file}", f"--out={tmp_path / 'hf'}", "--dtype=bfloat16"]) == 0
    params, cfg = models.load_hf(tmp_path / "hf")
    exact, _ = models.load_gguf(file, dtype="bfloat16")
    assert cfg.dtype == "bfloat16"
    jax.tree.map(np.testing.assert_array_equal, params, exact)


def test_transformers_reads_what_was_imported(file, tmp_path):
    transformers = pytest.importorskip("transformers")
    models.import_gguf(file, tmp_path / "hf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ours = models.load_tokenizer(file)
    assert theirs.eos_token_id == ours.eos_id and theirs.chat_template == ours.chat_template
    for text in TEXTS[:3]:
        assert theirs(text, add_special_tokens=False).input_ids == ours.encode(text)


# -- what is refused ----------------------------------------------------------------------------------

G = "tokenizer.ggml."
REFUSED = {
    "architecture": ({"general.architecture": "gemma"}, "general.architecture must be one of qwen2, "),
    "no size": ({"llama.block_count": None}, "llama.block_count must be given, found no such key"),
    "kind of size": ({"llama.block_count": "2"}, "llama.block_count must be of type int, got str"),
    "experts": ({"llama.expert_count": 8}, "llama.expert_count must be 0 (nothing else is supp"),
    "unknown option": ({"llama.attention.sliding_window": 8}, "llama.attention.sliding_window is not"),
    "rope scaling": ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type must be 'none' ("),
    "partial rope": ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count must be the size"),
    "a part": ({"split.count": 3}, "must be a whole model, got one of 3 parts"),
    "no tokenizer": ({f"{G}model": None}, "must have a tokenizer, found no tokenizer.ggml.model"),
    "sentencepiece": ({f"{G}model": "llama"}, "tokenizer.ggml.model must be 'gpt2', byte-level BPE"),
    "no tokens": ({f"{G}tokens": None}, "tokenizer.ggml.tokens must be given, found no such key"),
    "pieces": ({f"{G}pre": "tekken"}, "tokenizer.ggml.pre must be one of gpt-2, smollm, qwen2, "),
    "no merges": ({f"{G}merges": None}, "tokenizer.ggml.merges must be given, found no such key"),
    "merges": ({f"{G}merges": ["qqqq zzzz"]}, "tokenizer.ggml.merges must be of tokens of the vocab"),
    "half a merge": ({f"{G}merges": ["a"]}, "tokenizer.ggml.merges must be pairs of tokens, got ('a',)"),
    "types": ({f"{G}token_type": [1, 1]}, "tokenizer.ggml.token_type must have one entry a token"),
    "no end": ({f"{G}eos_token_id": None}, "tokenizer.ggml.eos_token_id must be given"),
    "far end": ({f"{G}eos_token_id": 9999}, "tokenizer.ggml.eos_token_id must be below"),
    "no template": ({"tokenizer.chat_template": None}, "must have a chat template, found no tokeni"),
    "empty template": ({"tokenizer.chat_template": " "}, "must have a chat template, found no token"),
}  # fmt: skip


def refused(path, out, capsys):
    """The line that `import` ends with; nothing was written."""
    before = set(out.parent.rglob("*"))
    assert main(["import", f"--gguf={path}", f"--out={out}"]) == 2
    assert set(out.parent.rglob("*")) == before
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("evolving-rl: --gguf") and str(path) in line
    return line


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_a_file_that_cannot_be_used_is_refused(case, tmp_path, tokenizer, capsys):
    metadata, message = REFUSED[case]
    raw = tiny()
    write_gguf(tmp_path / "m.gguf", raw, checkpoint(raw), tokenizer=tokenizer, metadata=metadata)
    assert message in refused(tmp_path / "m.gguf", tmp_path / "hf", capsys)


def test_a_tensor_that_cannot_be_used_is_named(tmp_path, tokenizer, capsys):
    raw = tiny()
    whole = checkpoint(raw)
    path, out = tmp_path / "m.gguf", tmp_path / "hf"
    write_gguf(
        path, raw, whole, tokenizer=tokenizer, extra={"blk.0.attn_q.bias": np.ones(64, "f4")}
    )
    line = refused(path, out, capsys)
    assert "model.layers.0.self_attn.q_proj.bias, which a llama model here does not use" in line
    write_gguf(path, raw, whole, tokenizer=tokenizer, extra={"blk.9.x": np.ones(4, "i4")})
    assert "blk.9.x must be of a type that the package gguf can de-quantise, got I32" in refused(
        path, out, capsys
    )
    factors = np.linspace(1, 8, 8, dtype="f4")
    write_gguf(path, raw, whole, tokenizer=tokenizer, extra={"rope_freqs.weight": factors})
    assert "rope_freqs.weight must be the rope scaling of Llama 3" in refused(path, out, capsys)
    name = "model.layers.1.mlp.up_proj.weight"
    write_gguf(path, raw, {n: t for n, t in whole.items() if n != name}, tokenizer=tokenizer)
    assert f"must hold {name}, found no such tensor (1 missing)" in refused(path, out, capsys)
    write_gguf(path, raw, whole | {name: whole[name][:32]}, tokenizer=tokenizer)
    assert f"{name} must have shape (64, 32), got (32, 32)" in refused(path, out, capsys)


@pytest.mark.parametrize("share", (0.0, 0.001, 0.05, 0.3, 0.6, 0.9, 0.999))
def test_a_file_that_is_cut_short_is_refused(share, file, tmp_path, capsys):
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    assert "must be a whole GGUF file" in refused(file, tmp_path / "hf", capsys)


def test_an_unknown_quantisation_is_refused(file, tmp_path, capsys):
    data = bytearray(file.read_bytes())
    at = data.index(b"blk.1.ffn_up.weight") + len(b"blk.1.ffn_up.weight") + 4 + 2 * 8
    assert data[at : at + 4] == bytes((int(Q.Q8_0), 0, 0, 0))
    data[at : at + 4] = bytes((99, 0, 0, 0))
    file.write_bytes(bytes(data))
    line = refused(file, tmp_path / "hf", capsys)
    assert "tensors of known types, got ValueError: " in line
    assert "99" in line and "is not a valid GGMLQuantizationType" in line


def test_other_files_and_missing_ones_are_refused(tmp_path, capsys):
    assert "found no such file" in refused(tmp_path / "none.gguf", tmp_path / "hf", capsys)
    (tmp_path / "text.gguf").write_text("no model at all, but long enough to be read")
    assert "must be a whole GGUF" in refused(tmp_path / "text.gguf", tmp_path / "hf", capsys)
