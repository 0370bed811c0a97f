"""Tiny GGUF files, written with the package's own writer from a Hugging Face folder's tensors.

Written after what llama.cpp's converter does, and without this project: names and the order of rows are
spelled out here.
"""

import json
import pathlib

import gguf
import numpy as np

from evolving_rl_jax.models import safetensors

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
Q = gguf.GGMLQuantizationType


def name_in_file(name):
    """token_embd.weight, blk.3.attn_q.bias, ..."""
    if name in NAMES:
        return NAMES[name]
    _, _, layer, *middle, end = name.split(".")
    return f"blk.{layer}.{LAYER_NAMES['.'.join(middle)]}.{end}"


def permuted(array, heads):
    """Rows of a projection as llama.cpp's rotary embedding of neighbours wants them, row by row."""
    size = len(array) // heads
    rows = [h * size + half * (size // 2) + i
            for h in range(heads) for i in range(size // 2) for half in (0, 1)]  # fmt: skip
    return array[rows]


def quantized(array, kind):
    """The bytes of an array, and the numbers that they stand for."""
    data = gguf.quantize(np.ascontiguousarray(array, np.float32), kind)
    return data, np.asarray(gguf.dequantize(data, kind), np.float32)


def checkpoint(raw, seed=0):
    """Random tensors of a model, ``raw`` being its config.json."""
    rng = np.random.default_rng(seed)
    hidden, width, dim = raw["hidden_size"], raw["intermediate_size"], raw["head_dim"]
    q, kv = raw["num_attention_heads"] * dim, raw["num_key_value_heads"] * dim
    shapes = {
        "model.embed_tokens.weight": (raw["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not raw["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (raw["vocab_size"], hidden)
    for i in range(raw["num_hidden_layers"]):
        start = f"model.layers.{i}."
        shapes |= {
            f"{start}input_layernorm.weight": (hidden,),
            f"{start}post_attention_layernorm.weight": (hidden,),
            f"{start}self_attn.q_proj.weight": (q, hidden),
            f"{start}self_attn.k_proj.weight": (kv, hidden),
            f"{start}self_attn.v_proj.weight": (kv, hidden),
            f"{start}self_attn.o_proj.weight": (hidden, q),
            f"{start}mlp.gate_proj.weight": (width, hidden),
            f"{start}mlp.up_proj.weight": (width, hidden),
            f"{start}mlp.down_proj.weight": (hidden, width),
        }
        if raw["model_type"] == "qwen2":
            sizes = {"q": q, "k": kv, "v": kv}
            shapes |= {f"{start}self_attn.{p}_proj.bias": (n,) for p, n in sizes.items()}
        if raw["model_type"] == "qwen3":
            shapes |= {f"{start}self_attn.{p}_norm.weight": (dim,) for p in "qk"}
    return {
        name: (np.ones(shape) + rng.normal(size=shape) / 8 if len(shape) == 1
               else rng.normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32)
        for name, shape in shapes.items()
    }  # fmt: skip


def write_folder(folder, raw, tensors, tokenizer=None):
    """The Hugging Face folder of the same model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    entries = [(n, t.shape, t.dtype, lambda t=t: t) for n, t in tensors.items()]
    safetensors.write_tensors(folder / "model.safetensors", entries)
    for file in pathlib.Path(tokenizer).iterdir() if tokenizer else ():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def read_folder(folder, config="config_older.json"):
    """(config.json, tensors) of a folder."""
    tensors = safetensors.open_tensors(folder / "model.safetensors")
    return json.loads((folder / config).read_text()), {n: np.array(t) for n, t in tensors.items()}


def write_gguf(
    path, raw, tensors, *, kind=Q.F32, tokenizer=None, pre="qwen2", metadata=None, extra=None
):
    """Writes a file; returns the tensors that it stands for, in Hugging Face's order of rows.

    Args:
      path: of the file.
      raw: the model's config.json.
      tensors: by Hugging Face name.
      kind: quantisation of the matrices; vectors are float32, as everywhere.
      tokenizer: folder of a byte-level BPE tokenizer.
      pre: the name that the file gives to the way it cuts text.
      metadata: {key: value}, in the place of what would be written; None leaves the key out.
      extra: {name: array} of tensors more, under their own names.
    """
    arch = raw["model_type"]
    writer = gguf.GGUFWriter(path, arch)
    for key, value in (_sizes(raw) | _tokens(tokenizer, pre) | (metadata or {})).items():
        if value is not None:
            _add(writer, key, value)
    heads = {"q_proj": raw["num_attention_heads"], "k_proj": raw.get("num_key_value_heads")}
    meant = {}
    for name, tensor in tensors.items():
        of_kind = kind if tensor.ndim > 1 else Q.F32
        _, meant[name] = quantized(tensor, of_kind)
        projection = name.split(".")[-2]
        if arch == "llama" and projection in heads:
            tensor = permuted(tensor, heads[projection])
        data, _ = quantized(tensor, of_kind)
        writer.add_tensor(name_in_file(name), data, raw_dtype=of_kind)
    for name, tensor in (extra or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def _add(writer, key, value):
    if key == "general.architecture":  # written by the writer itself
        writer.kv_data[0][key] = gguf.GGUFValue(value, gguf.GGUFValueType.STRING)
        return
    kinds = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
    getattr(writer, f"add_{kinds[type(value)]}")(key, value)


def _sizes(raw):
    arch = raw["model_type"]
    sizes = {
        "block_count": raw["num_hidden_layers"],
        "context_length": raw["max_position_embeddings"],
        "embedding_length": raw["hidden_size"],
        "feed_forward_length": raw["intermediate_size"],
        "attention.head_count": raw["num_attention_heads"],
        "attention.head_count_kv": raw["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": float(raw["rms_norm_eps"]),
        "rope.freq_base": float(raw["rope_theta"]),
    }
    if "head_dim" in raw:
        sizes |= {
            "attention.key_length": raw["head_dim"],
            "attention.value_length": raw["head_dim"],
        }
    return {f"{arch}.{key}": value for key, value in sizes.items()}


def _tokens(folder, pre):
    if folder is None:
        return {}
    raw = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    added = {t["id"]: t["content"] for t in raw["added_tokens"]}
    vocab = {i: t for t, i in raw["model"]["vocab"].items()} | added
    ids = {t: i for i, t in vocab.items()}
    merges = [m if isinstance(m, str) else " ".join(m) for m in raw["model"]["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [vocab[i] for i in range(len(vocab))],
        "tokenizer.ggml.token_type": [3 if i in added else 1 for i in range(len(vocab))],
        "tokenizer.ggml.merges": merges,
        **{
            f"tokenizer.ggml.{key}": ids[settings[name]]
            for name, key in (
                ("bos_token", "bos_token_id"),
                ("eos_token", "eos_token_id"),
                ("pad_token", "padding_token_id"),
            )
            if name in settings
        },
        "tokenizer.chat_template": settings["chat_template"],
    }
