"""Training, losslessness, special tokens as text, and the files as transformers reads them."""

import pytest

from evolving_rl_jax import models

pytest.importorskip("tokenizers")

TEXTS = [
    "You arrive at cabinet 3. On the cabinet 3, you see a mug 1, and a plate 12.",
    "go to countertop 1\ntake mug 1 from countertop 1\n",
    "Your task is to: put a hot mug in fridge.\n\n> go to microwave 1",
] * 20


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return models.train_tokenizer(TEXTS, vocab_size=400, out_dir=tmp_path_factory.mktemp("tok"))


@pytest.mark.parametrize(
    "text",
    [
        TEXTS[0],
        "",
        " leading and trailing  spaces \t\n \r\n x",
        "naïve café — 你好 🙂 \x00\x7f",
        "<eos><pad><obs> is text here",
        "12345 3.14 a1b2",
        bytes(range(1, 256)).decode("latin-1"),
    ],
)
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.special_ids.values())
    assert tokenizer.encode_batch([text, text]) == [ids, ids]


def test_frequent_words_are_single_tokens_and_digits_stand_alone(tokenizer):
    assert [tokenizer.decode([i]) for i in tokenizer.encode("go to cabinet 12")] == [
        "go",
        " to",
        " cabinet",
        " 1",
        "2",
    ]


def test_special_tokens(tokenizer):
    assert tokenizer.special_ids == {"<pad>": 0, "<eos>": 1, "<obs>": 2, "<act>": 3, "<skill>": 4}
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id) == (0, 1, None)
    assert tokenizer.stop_ids == (1,)
    ids = [2, *tokenizer.encode("mug"), 1]
    assert tokenizer.decode(ids) == "<obs>mug<eos>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "mug"
    assert max(tokenizer.encode(bytes(range(256)).decode("latin-1"))) < tokenizer.vocab_size <= 400


def test_training_is_reproducible_and_loading_is_the_same(tokenizer, tmp_path):
    again = models.train_tokenizer(TEXTS, vocab_size=400, out_dir=tmp_path)
    names = ("tokenizer.json", "tokenizer_config.json")
    assert all((tmp_path / n).read_bytes() == (tokenizer.path / n).read_bytes() for n in names)
    assert again.encode(TEXTS[1]) == models.load_tokenizer(tokenizer.path).encode(TEXTS[1])


def test_transformers_loads_the_folder(tokenizer):
    transformers = pytest.importorskip("transformers")
    other = transformers.AutoTokenizer.from_pretrained(tokenizer.path)
    for text in TEXTS[:3]:
        assert other(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
        assert other.decode(tokenizer.encode(text)) == text
    assert (other.eos_token_id, other.pad_token_id) == (1, 0)
    assert other.convert_tokens_to_ids("<act>") == 3


def test_stop_ids_of_a_generation_config(tokenizer, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tokenizer.path / name).read_bytes())
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 3]}')
    assert models.load_tokenizer(tmp_path).stop_ids == (1, 3)


def test_errors(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="vocab_size must be at least 261 .*, got 260"):
        models.train_tokenizer(TEXTS, vocab_size=260, out_dir=tmp_path)
    with pytest.raises(ValueError, match="special_tokens must be distinct and include <pad>"):
        models.train_tokenizer(TEXTS, vocab_size=400, out_dir=tmp_path, special_tokens=["<eos>"])
    with pytest.raises(FileNotFoundError, match="tokenizer.json must belong to a Hugging Face"):
        models.load_tokenizer(tmp_path / "none")
    (tmp_path / "tokenizer.json").write_bytes((tokenizer.path / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    with pytest.raises(ValueError, match="must name an eos_token of the vocabulary, got '<end>'"):
        models.load_tokenizer(tmp_path)
    assert not list(tmp_path.glob("*.partial"))


def test_numbered_pieces_make_one_token_of_a_numbered_thing(tmp_path):
    from evolving_rl_jax.models.tokenizer import NUMBERED_PIECES

    numbered = models.train_tokenizer(
        TEXTS, vocab_size=400, out_dir=tmp_path, pieces=NUMBERED_PIECES
    )
    assert len(numbered.encode(" cabinet 3")) == 1
    for text in (*TEXTS[:3], "take mug 1234 from x9 — 你好\n"):
        assert numbered.decode(numbered.encode(text)) == text
