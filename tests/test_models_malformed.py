"""Files of models, adapters and tokenizers that hold something else than they must: one line that names the file."""

import json

import pytest
from chat_models import make_tokenizer_folder

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

from evolving_rl_jax import models
from evolving_rl_jax.models import lora as lora_lib
from evolving_rl_jax.models.hf import load_hf
from evolving_rl_jax.models.tokenizer import load_tokenizer
from evolving_rl_jax.rollout.chat import ChatFormat
from evolving_rl_jax.rollout.conversations import read_conversations

QWEN = {
    "model_type": "qwen2", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32,
    "num_hidden_layers": 1, "num_attention_heads": 2,
}  # fmt: skip


def changed(file, **keys):
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


@pytest.mark.parametrize(
    "change", [{"rms_norm_eps": None}, {"rope_theta": None}, {"rope_scaling": "linear"}]
)
def test_values_of_another_type_in_a_config(tmp_path, change):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(QWEN | change))
    with pytest.raises(ValueError, match="config.json"):
        models.config_from_hf(tmp_path)
    file.write_text("[]")
    with pytest.raises(ValueError, match="config.json must be a JSON object, got a list"):
        models.config_from_hf(tmp_path)


@pytest.mark.parametrize(
    "text, message",
    [
        ("[]", "must be a JSON object"),
        ("{}", "weight_map must name a file for each tensor"),
        ('{"weight_map": {"a": 1}}', "weight_map must name a file for each tensor"),
        ("{", "must be JSON"),
    ],
)
def test_an_index_of_weights(tmp_path, text, message):
    (tmp_path / "config.json").write_text(json.dumps(QWEN))
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=f"index.json.*{message}"):
        load_hf(tmp_path)


@pytest.mark.parametrize("change", [{"r": None}, {"r": "4"}, {"r": 4.0}, {"lora_alpha": None}])
def test_an_adapters_numbers(tmp_path, change):
    raw = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(raw | change))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    (name,) = change
    with pytest.raises(ValueError, match=f"{name} must be a number above 0, got"):
        lora_lib.load_adapter(tmp_path, models.ModelConfig)


def test_a_tokenizer_whose_files_are_no_objects_or_name_no_ids(tmp_path):
    folder = make_tokenizer_folder(tmp_path)
    (folder / "generation_config.json").write_text('{"eos_token_id": ["2", null]}')
    with pytest.raises(ValueError, match="eos_token_id must be an id or a list of them"):
        load_tokenizer(folder)
    (folder / "generation_config.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ValueError, match="tokenizer_config.json must be a JSON object"):
        load_tokenizer(folder)


def test_a_tokenizer_whose_single_tokens_are_no_pieces_of_a_text_is_refused(tmp_path):
    folder = make_tokenizer_folder(tmp_path)
    parts = [{"type": "ByteFallback"}, {"type": "Fuse"}]
    changed(folder / "tokenizer.json", decoder={"type": "Sequence", "decoders": parts})
    with pytest.raises(
        ValueError, match="must be of a byte-level tokenizer .* got decoder 'Sequence'"
    ):
        load_tokenizer(folder)


def test_a_tokenizer_that_pads_is_used_without(tmp_path):
    folder = make_tokenizer_folder(tmp_path)
    padding = {
        "strategy": {"Fixed": 512}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>",
    }  # fmt: skip
    changed(folder / "tokenizer.json", padding=padding)
    ChatFormat(load_tokenizer(folder)).check()


def test_conversations_with_reasoning_are_named(tmp_path):
    folder = make_tokenizer_folder(tmp_path / "tokenizer")
    raw = json.loads((folder / "tokenizer.json").read_text())
    special = raw["added_tokens"][0]
    last = 1 + max(*raw["model"]["vocab"].values(), *(t["id"] for t in raw["added_tokens"]))
    raw["added_tokens"].append(special | {"id": last, "content": "<think>"})
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    user, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    thought = answer | {"content": "<think>c</think>b"}
    file = tmp_path / "talk.jsonl"
    lines = [[user, answer], [user, thought], [user, answer | {"reasoning_content": "c"}]]
    file.write_text("\n".join(json.dumps({"messages": m}) for m in lines))
    found = read_conversations(file, ChatFormat(load_tokenizer(folder)), 100)
    assert found.lines == [1] and found.problems == {
        "with reasoning in an answer": [(2, "<think>")],
        "with something else than text": [(3, "reasoning_content")],
    }
    plain = make_tokenizer_folder(tmp_path / "plain")  # characters like others there
    assert read_conversations(file, ChatFormat(load_tokenizer(plain)), 100).lines == [1, 2]
