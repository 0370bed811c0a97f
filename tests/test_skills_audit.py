"""The language audit, against golden cases and against plain slow definitions of its rules."""

import json
import random
from pathlib import Path

import pytest

from evolving_rl_jax.skills import AuditRules, Skill, audit, render_skill
from evolving_rl_jax.skills.schema import text_to_audit
from evolving_rl_jax.types import Task

GOLDEN = json.loads((Path(__file__).parent / "golden" / "skill_audit.json").read_text())["cases"]


# Ordinary English that the released audit refuses for one character; here it passes.
CORRECTED = {"accent_letter", "superscript_digit"}


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["id"])
def test_golden(case):
    result = audit(case["text"])._asdict()
    expected = case["expected"]
    if case["id"] in CORRECTED:
        expected = {**expected, "passed": True, "has_non_english_characters": False}
        assert expected != case["expected"]
    assert {key: result[key] for key in expected} == expected
    assert not result["has_leakage"] and not result["too_long"]
    assert bool(result["reasons"]) != result["passed"]


def _slow_repetition(words):
    """Token runs and repeated chunks by trying every chunk at every place."""
    for length, repeats, characters in ((1, 8, 0), (2, 4, 8), (3, 4, 8), (4, 4, 8)):
        for i in range(len(words) - length * repeats + 1):
            chunk = words[i : i + length]
            if len(" ".join(chunk)) >= characters and words[i : i + length * repeats] == (
                chunk * repeats
            ):
                return True
    return False


def test_repetition_equals_the_slow_definition():
    rng = random.Random(3)
    seen = set()
    for _ in range(4000):
        vocabulary = ["a", "to", "the", "open", "drawers"][: rng.randrange(1, 6)]
        words = rng.choices(vocabulary, k=rng.randrange(30))
        expected = _slow_repetition(words)
        assert audit(" ".join(words)).has_repetition == expected, words
        seen.add(expected)
    assert seen == {True, False}


def test_every_flag_has_its_reason():
    result = audit("\u200b\u03b1 " + "x" * 9, leakage_texts=["XXXXXXXXX"], max_chars=3)
    assert not result.passed and len(result.reasons) == 5
    assert "U+200B" in result.reasons[0] and "U+03B1" in result.reasons[1]


@pytest.mark.parametrize(
    ("answer", "leaks"),
    [
        ("Cabinet 3", True),
        ("cabinet", True),
        ("cabinet 33", False),
        ("binet 3", False),
        ("", False),
        ("...", False),
        ("CABINET  3.", True),
    ],
)
def test_leakage_compares_whole_words(answer, leaks):
    result = audit("Mugs are in cabinet 3!", leakage_texts=[answer])
    assert result.has_leakage == leaks == (not result.passed)


@pytest.mark.parametrize(("limit", "passes"), [(5, True), (4, False), (None, True)])
def test_length_limit(limit, passes):
    result = audit("abcde", max_chars=limit)
    assert (result.passed, result.too_long) == (passes, not passes)


def test_megabytes_of_each_pattern():
    words = [f"word{i}" for i in range(100_000)]
    for text in (
        " ".join(words),
        "\n".join(words),
        "ab" * 500_000,
        " " * 1_000_000,
        "a b " * 250_000,
        "\n" * 1_000_000,
        "".join(map(chr, range(0x20000))),
    ):
        audit(text, leakage_texts=["word5 word7"])  # quadratic time would not come back


TASK = Task("t", "e", "s", "y", "x", "/", "h", meta={
    "walkthrough": ["look", "go to cabinet 3", "take mug 1 from cabinet 3"], "answers": ["Boston"]
})  # fmt: skip
SEEN = ["On the cabinet 3, you see a mug 1.", "You open the Drawer 12."]


@pytest.mark.parametrize(
    ("text", "rules", "flag"),
    [
        ("Go to cabinet 3, then look.", {}, ""),
        ("Go to cabinet 3, then look.", {"leakage": True}, "has_leakage"),
        ("They fly from boston.", {"leakage": True}, "has_leakage"),
        ("Look around first.", {"leakage": True}, ""),
        ("Mugs are in cabinet 3.", {"leakage": True}, ""),
        ("Mugs are in cabinet 3.", {"entities": True}, "has_copied_entities"),
        ("Try drawer 12.", {"entities": True}, "has_copied_entities"),
        ("Mugs are in cabinets, see cabinet 33.", {"entities": True}, ""),
        ("x" * 7, {"max_chars": 7}, ""),
        ("some more", {"max_chars": 7}, "too_long"),
    ],
)
def test_each_audit_is_switched_on_by_itself(text, rules, flag):
    result = AuditRules(**rules).apply(text, TASK, SEEN)
    flags = {name for name, value in result._asdict().items() if value is True} - {"passed"}
    assert flags == ({flag} if flag else set()) and result.passed == (not flag)
    assert len(result.reasons) == len(flags)


# -- characters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Sauté the egg", "a résumé", "naïve", "½ a cup", "x² + y³", "⚠️ hot", "Ærø, Łódź, ñandú, ß",
        "Māori, Nguyễn", "⅓, ① and ❷", "5 € – “fine” … ✓ → 90° ≤ 100 °C, № 5, ™", "🔥 1️ 🧊 ☕",
        "∑ × ÷ ± ∞", "A\u00a0B", "├── a\n└── b", "⁴ and H₂O",
    ],
)  # fmt: skip
def test_ordinary_english_passes(text):
    assert audit(text).reasons == ()


@pytest.mark.parametrize(
    "code",
    # radicals, Yi, Braille, letters in circles and squares, flags, ideographs in circles and brackets
    [0x2F00, 0x2E80, 0xA492, 0x2813, 0x24D0, 0x24B6, 0x1F170, 0x1F1FA, 0x328A, 0x3220, 0x3206]
    # punctuation and symbols of other scripts, a hexagram, mathematical and small letters, a mark
    + [0x3001, 0x3002, 0x300C, 0x3000, 0x2FF0, 0x4DC0, 0x1D49C, 0x1D00, 0x250, 0xB5, 0x2163, 0xFB01]
    + [0xAA, 0x2B0, 0x212A, 0x391, 0x430, 0x966, 0x338, 0xFFA0, 0x2028, 0xFD5, 0x10102, 0x200D],
    ids=lambda code: f"U+{code:04X}",
)  # fmt: skip
def test_characters_of_no_english_text_are_refused(code):
    result = audit(f"look into the drawer {chr(code)}")
    assert not result.passed
    assert result.has_uncommon_characters or result.has_non_english_characters


@pytest.mark.parametrize(
    "text", ["stop <|im_end|>", "<|endoftext|>", "</s>", "[INST] go [/INST]", "<start_of_turn>user"]
)
def test_control_tokens_of_chat_models_are_refused(text):
    result = audit(text)
    assert result.has_control_tokens and not result.passed and len(result.reasons) == 1
    assert audit(text.replace("<", "").replace("[", "")).passed


def test_tags_and_comparisons_are_no_control_tokens():
    assert audit("if a < b | c > d, write <name> [x] </table> <b>").passed


# -- loops ----------------------------------------------------------------------------------------

SENTENCES = "look into every drawer and cabinet before you open the fridge then take what is needed"


@pytest.mark.parametrize("period", [5, 6, 7, 9, 12, 16, 25, 40])
def test_loops_of_any_period_are_found(period):
    rng = random.Random(period)
    words = [f"{w}{rng.choice(['', 's', 'ed'])}" for w in rng.choices(SENTENCES.split(), k=period)]
    before = " ".join(f"Then do thing {i} of {i * 7919 % 89}." for i in range(20))
    loop = " ".join(words * 50)
    assert audit(loop).has_repetition and audit(f"{before} {loop} {before}").has_repetition
    assert "repeat" in audit(loop).reasons[0] or period < 5
    assert not audit(" ".join(words * 2)).has_repetition and not audit(before).has_repetition


def test_a_loop_that_counts_is_found():
    assert audit(" ".join(f"Then go on to number {i} again." for i in range(200))).has_repetition


def test_lists_of_like_lines_are_no_loops():
    things = "mug pan apple egg fork knife plate bowl cup pot lettuce tomato spoon vase".split()
    lines = [f"- If the {t} is not on a countertop, look into every closed thing." for t in things]
    table = ["| object | place |", "| ------ | ----- |", *(f"| {t} | a drawer |" for t in things)]
    assert audit("\n".join(lines)).passed and audit("\n".join(table)).passed


@pytest.mark.parametrize(
    "text",
    [
        "Look first.\n\n----------\n\nThen act.",
        "| object | place |\n|--------|---------|\n| mug | drawer |",
        "|--------|",
        "----------",
        "Mugs\n==========\nThey are in drawers.",
        "a\n\n* * * * * * * * * *\n\nb",
        "| a | b | c | d | e | f |\n" + "| :--- | ---: | --- | --- | --- | --- |\n" + "| 1 | 2 |",
        "a\n________\nb\n--------\nc",
    ],
)
def test_markdown_rules_are_no_loops(text):
    assert audit(text).reasons == ()


@pytest.mark.parametrize(
    "text",
    [
        "a -------- b", "a\n" + "-" * 200 + "\nb", "a\n" + "--------\n" * 3 + "b",
        "take it\n\n--------\n", "a\n--------x\nb", "|" * 8 + "\nb",
    ],
)  # fmt: skip
def test_runs_that_are_no_rules_are_loops(text):
    assert audit(text).has_repetition


# -- what a skill must not say ----------------------------------------------------------------------

COMMAND, THINGS = "take mug 1 from cabinet 2", ["cabinet 2", "mug 1", "shelf 3", "knife 1"]


@pytest.mark.parametrize(
    "text",
    [
        "take the mug 1 from cabinet 2", "take_mug_1_from_cabinet_2", "Take mug1 from the Cabinet2!",
        "- **take** `mug 1` from a cabinet 2", "take mugs 1 from cabinet-2", "take mug 1 from cabinets 1, 2 and 3",
    ],
)  # fmt: skip
def test_a_command_leaks_however_it_is_written(text):
    assert audit(text, leakage_texts=[COMMAND]).has_leakage


@pytest.mark.parametrize(
    "text",
    [
        "cabinet_2", "CABINET2", "cabinets 2 and 3", "cabinets 1, 2 or 5", "cabinets 1 and 2", "cabinet #2",
        "shelves 3 and 4", "knives 1", "in the cabinet-2", "cabinet (2)", "Cabinet: 2",
    ],
)  # fmt: skip
def test_single_things_are_found_however_they_are_written(text):
    assert audit(f"Look at {text}.", entities=THINGS).has_copied_entities


@pytest.mark.parametrize(
    "text",
    [
        "1. Look into every cabinet\n2. Open it",
        "- go to cabinet\n2) open it\n(3) take mug\n1. close it",
        "Look into every cabinet. 2 of them are closed",
        "cabinet\n\n2",
        "cabinet 22, cabinets 12 and 20, mug 11, cabinet two",
        "a cabinet; 2. a shelf; 3. a knife; 1. a mug",
    ],
)
def test_lines_and_list_numbers_are_no_names_of_things(text):
    result = audit(text, entities=THINGS, leakage_texts=["go to cabinet 2", "open cabinet 2", "2"])
    assert not result.has_copied_entities
    assert result.has_leakage == ("2 of" in text or "\n\n2" in text)  # "2" itself was said


def test_a_numbered_workflow_is_read_field_by_field():
    steps = ["Look into every cabinet", "go to shelf", "take knife", "find the mug\n1. on a desk"]
    skill = Skill.from_dict({"name": "n", "description": "d", "workflow": steps})
    rules = AuditRules(leakage=True, entities=True)
    assert rules.apply(text_to_audit(skill), TASK, ["cabinet 2 shelf 3 mug 1 knife 4"]).passed
    assert audit(text_to_audit(skill)).passed and "mug 1." in render_skill(skill)
