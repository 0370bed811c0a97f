"""Markers of the compact form in imported tokenizers: which ids they get, and that nothing else changes."""

import json

import pytest
from chat_models import make_tokenizer_folder

pytest.importorskip("tokenizers")

from evolving_rl_jax.models.markers import place_markers, with_markers
from evolving_rl_jax.models.tokenizer import load_tokenizer
from evolving_rl_jax.rollout.chat import ChatFormat
from evolving_rl_jax.rollout.prompts import COMPACT_MARKERS

UNUSED = ("<repo_name>", "<file_sep>", "<filename>", "<gh_stars>", "<issue_start>", "<jupyter>")
TEXT = "Task: put a hot mug in fridge.\n\nYou arrive at cabinet 3. <obs> <task><repo_name>"


def make(folder, **options):
    return load_tokenizer(make_tokenizer_folder(folder, **options))


def test_unused_special_tokens_are_renamed_in_the_order_of_their_ids(tmp_path):
    old = make(tmp_path / "old", unused=UNUSED)
    new = with_markers(old.path, COMPACT_MARKERS, old.vocab_size, tmp_path / "new")
    ids = [old.special_ids[t] for t in UNUSED]
    assert [new.special_ids[m] for m in COMPACT_MARKERS] == ids[:5]
    assert new.special_ids[UNUSED[5]] == ids[5] and UNUSED[0] not in new.special_ids
    assert new.vocab_size == old.vocab_size
    # The text of a marker in a message stays plain characters, as everything else does.
    assert new.encode(TEXT) == old.encode(TEXT) and new.decode(new.encode(TEXT)) == TEXT
    ChatFormat(new).check()
    assert new.chat_template == old.chat_template and new.stop_ids == old.stop_ids


def test_what_is_named_or_stands_in_the_template_is_no_unused_token(tmp_path):
    """Of the Llama family only its reserved tokens are, and they come before others."""
    unused = ("<|python_tag|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>")
    folder = make_tokenizer_folder(tmp_path, "llama3", unused=unused)
    stop = load_tokenizer(folder).special_ids["<|end_of_text|>"]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [stop]}))
    tokenizer = load_tokenizer(folder)
    places = place_markers(tokenizer, ("<a>", "<b>", "<c>"), tokenizer.vocab_size)
    ids = tokenizer.special_ids
    assert places == {"<a>": ids[unused[1]], "<b>": ids[unused[2]], "<c>": ids[unused[0]]}
    with pytest.raises(ValueError, match=r"6 special tokens that nothing uses.* found 3 and 1"):
        place_markers(tokenizer, [f"<{i}>" for i in range(6)], tokenizer.vocab_size + 1)


def test_spare_rows_of_the_embedding_are_named_where_tokens_are_too_few(tmp_path):
    old = make(tmp_path / "old", unused=UNUSED[:2])
    new = with_markers(old.path, COMPACT_MARKERS, old.vocab_size + 3, tmp_path / "new")
    first = old.vocab_size
    expected = [*(old.special_ids[t] for t in UNUSED[:2]), first, first + 1, first + 2]
    assert [new.special_ids[m] for m in COMPACT_MARKERS] == expected
    assert new.encode(TEXT) == old.encode(TEXT)
    with pytest.raises(ValueError, match=r"must have 5 special tokens .* found 2 and 2"):
        with_markers(old.path, COMPACT_MARKERS, old.vocab_size + 2, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("unused", [UNUSED, UNUSED[:2]])
def test_transformers_reads_the_markers_as_the_same_tokens(tmp_path, unused):
    transformers = pytest.importorskip("transformers")
    old = make_tokenizer_folder(tmp_path / "old", unused=unused)
    theirs = transformers.AutoTokenizer.from_pretrained(old)
    theirs.save_pretrained(old)  # with its own added_tokens_decoder
    new = with_markers(old, COMPACT_MARKERS, 600, tmp_path / "new")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "new")
    for marker in COMPACT_MARKERS:
        assert theirs.convert_tokens_to_ids(marker) == new.special_ids[marker]
        assert theirs(marker, add_special_tokens=False)["input_ids"] == [new.special_ids[marker]]
    again = with_markers(tmp_path / "new", COMPACT_MARKERS, 600, tmp_path / "again")
    assert again.special_ids == new.special_ids
