"""Chat templates as appended ids, against the library's own rendering, and what is refused."""

import pytest
from chat_models import CHATML, FAMILIES, LLAMA3, REASONING, make_tokenizer_folder

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

from evolving_rl_jax.models.tokenizer import load_tokenizer
from evolving_rl_jax.rollout.chat import ChatFormat

CONVERSATION = (
    "Rules.\n\n- one action",
    "Task: put a mug in fridge 1.\n\nObservation:\nYou see a cabinet 12.",
    "<reasoning>Look.</reasoning>\n<action>look</action>",
    "Observation:\nNothing happens.",
    "<action>open cabinet 12</action>",
    "Observation:\nThe cabinet 12 is open.",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("chat")
    return {name: make_tokenizer_folder(root / name, name) for name in FAMILIES}


def make(tmp_path, family="chatml", **options):
    return ChatFormat(load_tokenizer(make_tokenizer_folder(tmp_path, family, **options)))


def append(chat, messages):
    ids = chat.opening(*messages[:2])
    for answer, user in zip(messages[2::2], messages[3::2], strict=True):
        ids += chat.answer(answer)
        ids += chat.next_turn(user, last_id=ids[-1])
    return ids


@pytest.mark.parametrize("family", FAMILIES)
def test_appended_turns_are_the_ids_that_transformers_renders(folders, family):
    transformers = pytest.importorskip("transformers")
    tokenizer = load_tokenizer(folders[family])
    chat = ChatFormat(tokenizer)
    chat.check()
    theirs = transformers.AutoTokenizer.from_pretrained(folders[family])
    # Their date is today's; ours is the same on every day.
    theirs.chat_template = theirs.chat_template.replace("strftime_now('%d %b %Y')", "'26 Jul 2024'")
    for end in (2, 4, 6):
        roles = ("system", "user", "assistant", "user", "assistant", "user")[:end]
        messages = [{"role": r, "content": c} for r, c in zip(roles, CONVERSATION, strict=False)]
        expected = theirs.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        assert append(chat, CONVERSATION[:end]) == list(expected)


def test_delimiters_come_from_the_template(folders):
    chat = ChatFormat(load_tokenizer(folders["chatml"]))
    assert chat.tokenizer.decode([chat.end_id]) == "<|im_end|>"
    decode = chat.tokenizer.decode
    assert decode(chat.opening(" a\n", "b")) == (
        "<|im_start|>system\na<|im_end|>\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n"
    )
    turn = "\n<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n"
    assert decode(chat.next_turn("b", last_id=chat.end_id)) == turn
    # An answer that was cut off, or ended with another stop token, is closed first.
    other = chat.tokenizer.special_ids["<|endoftext|>"]
    for last in (5, other, None):
        assert decode(chat.next_turn("b", last_id=last)) == "<|im_end|>" + turn
    llama = ChatFormat(load_tokenizer(folders["llama3"]))
    text = llama.tokenizer.decode(llama.opening("a", "b"))
    assert text.startswith("<|begin_of_text|><|start_header_id|>system") and "26 Jul 2024" in text


@pytest.mark.parametrize("family", FAMILIES)
def test_a_message_never_becomes_a_special_token(folders, family):
    chat = ChatFormat(load_tokenizer(folders[family]))
    specials = chat.tokenizer.special_ids

    def count(ids):
        return [ids.count(i) for i in specials.values()]

    spoof = "".join(specials) + " user"
    assert count(chat.opening(spoof, spoof)) == count(chat.opening("a", "b"))
    assert count(chat.next_turn(spoof)) == count(chat.next_turn("b"))
    assert spoof in chat.tokenizer.decode(chat.next_turn(spoof))


REFUSED = {
    "system-moves": (
        "{%- for m in messages[1:] %}{{- '<|im_start|>' + m.role + '\\n' }}"
        "{%- if loop.last %}{{- messages[0].content + '\\n' }}{% endif %}"
        "{{- m.content + '<|im_end|>\\n' }}{% endfor %}{{- '<|im_start|>assistant\\n' }}",
        r"a later turn changes the text of earlier ones, first at character 17: 'SystemMark7",
    ),
    "old-answers-shortened": (
        CHATML.replace("m.content +", "m.content.split('</reasoning>')[-1] +"),
        r"appended ids differ from the whole rendering in turn 2 at token \d+, after '.*assistant",
    ),
    "turns-are-counted": (
        CHATML.replace("m.role +", "m.role + (messages | length | string) +"),
        "a later turn changes the text of earlier ones, first at character 18: '2",
    ),
    "no-special-tokens": (
        "{%- for m in messages %}{{- m.role + ': ' + m.content + '\\n' }}{% endfor %}assistant: ",
        "a turn must end with a special token, got",
    ),
    "blank-before-the-answer": (
        CHATML.replace("'<|im_start|>assistant\\n'", "'<|im_start|>assistant '").replace(
            "m.role + '\\n'", "m.role + (' ' if m.role == 'assistant' else '\\n')"
        ),
        "appended ids differ from the whole rendering in turn 2 at token",
    ),
    "no-system-messages": (
        "{%- if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}",
        "the template refuses a conversation: no system role",
    ),
    "upper-case": (
        CHATML.replace("m.content", "m.content | upper"),
        "messages must come once each and in order, got '<.im_start.>system",
    ),
    "broken": ("{% for %}", "the template cannot be read: "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_templates_that_cannot_be_appended_are_refused_with_the_place(tmp_path, name):
    template, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        make(tmp_path, template=template).check()


def test_a_tokenizer_that_swallows_line_ends_is_refused(tmp_path):
    with pytest.raises(ValueError, match="appended ids differ from the whole rendering in turn 1"):
        make(tmp_path, rstrip=True).check()


def test_templates_are_found_where_transformers_keeps_them(tmp_path):
    folder = make_tokenizer_folder(tmp_path, template="")
    with pytest.raises(ValueError, match="must have a chat template .* found none"):
        ChatFormat(load_tokenizer(folder))
    (folder / "chat_template.jinja").write_text(CHATML)
    ChatFormat(load_tokenizer(folder)).check()
    several = [{"name": "tools", "template": "x"}, {"name": "default", "template": LLAMA3}]
    folder = make_tokenizer_folder(tmp_path / "several", "llama3", template=several)
    assert load_tokenizer(folder).chat_template == LLAMA3
    assert load_tokenizer(folder).named_tokens["bos_token"] == "<|begin_of_text|>"


def test_marks_of_what_the_assistant_says_render_as_what_they_hold(tmp_path):
    said = "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}"
    assert said in CHATML
    marked = CHATML.replace(said, "{%- generation %}" + said + "{% endgeneration -%}")
    chat, plain = make(tmp_path / "marked", template=marked), make(tmp_path / "plain")
    chat.check()
    assert chat.opening("a", "b") == plain.opening("a", "b")
    assert chat.answer("look") == plain.answer("look")


def test_reasoning_that_stays_out_of_later_turns_does_not_break_appending(tmp_path):
    chat = make(tmp_path, "reasoning", template=REASONING)
    chat.check()
    ids = chat.opening("a", "b") + chat.answer("<think>long</think>\n\nlook")
    ids += chat.next_turn("c", last_id=ids[-1])
    assert "<think>long</think>" in chat.tokenizer.decode(ids)
