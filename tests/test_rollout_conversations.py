"""Conversations in the ``messages`` form as sequences: the template's own ids, what is taught, what is refused."""

import json

import numpy as np
import pytest
from chat_models import FAMILIES, make_tokenizer_folder

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

from evolving_rl_jax.models.tokenizer import load_tokenizer
from evolving_rl_jax.rollout.chat import ChatFormat
from evolving_rl_jax.rollout.conversations import read_conversations

SYSTEM = {"role": "system", "content": "Answer in one word."}
USER = {"role": "user", "content": "Where is the mug 12?\n\nThe cabinet 3 is <|im_end|> open."}
ANSWER = {"role": "assistant", "content": "<reasoning>r</reasoning>\n<action>look</action>"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "And the "}, {"type": "text", "text": "plate?"}]}  # fmt: skip
LAST = {"role": "assistant", "content": " In cabinet 2.\n"}
TALK = [SYSTEM, USER, ANSWER, PARTS, LAST]


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    root = tmp_path_factory.mktemp("chats")
    return {
        name: ChatFormat(load_tokenizer(make_tokenizer_folder(root / name, name)))
        for name in FAMILIES
    }


def write(path, *conversations):
    lines = [c if isinstance(c, str) else json.dumps({"messages": c}) for c in conversations]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def plain(message):
    content = message["content"]
    text = content if isinstance(content, str) else "".join(p["text"] for p in content)
    return {"role": message["role"], "content": text.strip()}


@pytest.mark.parametrize("system", [True, False])
@pytest.mark.parametrize("family", ["chatml", "llama3"])
def test_ids_are_those_that_transformers_renders(chats, tmp_path, family, system):
    transformers = pytest.importorskip("transformers")
    chat = chats[family]
    talk = [plain(m) for m in (TALK if system else TALK[1:])]
    talk[system]["content"] = "Where is the mug 12?"  # what looks special would become it there
    theirs = transformers.AutoTokenizer.from_pretrained(chat.tokenizer.path)
    theirs.chat_template = theirs.chat_template.replace("strftime_now('%d %b %Y')", "'26 Jul 2024'")
    expected = theirs.apply_chat_template(talk, tokenize=True, return_dict=False)
    (sample,) = read_conversations(write(tmp_path / "a", talk), chat, 1000).samples
    ids = sample.tokens.tolist()
    assert ids == list(expected)[: len(ids)]
    assert not chat.tokenizer.decode(list(expected)[len(ids) :]).strip()  # a line end at most
    if family == "chatml" and not system:
        assert "Be helpful." in chat.tokenizer.decode(ids)  # as the template has it without one


@pytest.mark.parametrize("family", FAMILIES)
def test_assistant_turns_alone_are_taught_with_their_one_end_token(chats, tmp_path, family):
    chat = chats[family]
    after = [*TALK, {"role": "user", "content": "Thanks!"}]
    both = read_conversations(write(tmp_path / "a", TALK, "", after), chat, 1000)
    assert both.lines == [1, 3] and not both.problems
    sample, other = both.samples
    assert sample.tokens.tolist() == other.tokens.tolist()
    changes = np.flatnonzero(np.diff(sample.loss_mask)) + 1
    parts = np.split(sample.tokens, changes)
    assert len(parts) == 4 and sample.loss_mask[0] == 0
    for ids, message in zip(parts[1::2], (ANSWER, LAST), strict=True):
        assert ids.tolist().count(chat.end_id) == 1 and ids[-1] == chat.end_id
        assert chat.tokenizer.decode(ids[:-1]) == message["content"].strip()
    assert parts[2][0] != chat.end_id


BAD = [
    [USER, ANSWER],
    [{"role": "tool", "content": "x"}, ANSWER],
    [SYSTEM, USER],
    '{"messages": 3}',
    "{",
    [ANSWER, USER],
    [USER, USER, ANSWER],
    [USER, {"role": "assistant", "content": ""}],
    [USER, {"role": "assistant", "content": [{"type": "image_url"}]}],
    [{**USER, "content": "long " * 300}, ANSWER],
    [{"role": "function", "content": "x"}, ANSWER],
]


def test_what_cannot_be_used_is_named_and_counted(chats, tmp_path):
    found = read_conversations(write(tmp_path / "bad", *BAD), chats["chatml"], 200)
    assert found.lines == [1]
    text = found.explain()
    assert text.startswith("10 of 11 conversations: ")
    for part in (
        "2 with an unknown role (line 2 (tool), line 11 (function))",
        "1 without an assistant turn (line 3)",
        "1 without a list of messages (line 4)",
        "1 no JSON (line 5)",
        "2 with turns out of order (line 6 (assistant where user 1 is due), line 7 (user where",
        "1 with a message without text (line 8 (assistant))",
        "1 with something else than text (line 9 (image_url))",
        "1 longer than 200 tokens (line 10 (",
    ):
        assert part in text, text


def test_a_file_that_is_none_is_refused(chats, tmp_path):
    chat = chats["chatml"]
    with pytest.raises(FileNotFoundError, match="must be a file of conversations"):
        read_conversations(tmp_path / "none", chat, 100)
    with pytest.raises(ValueError, match="must hold conversations, one a line, found none"):
        read_conversations(write(tmp_path / "empty", "", " "), chat, 100)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="must be text in UTF-8"):
        read_conversations(tmp_path / "binary", chat, 100)
