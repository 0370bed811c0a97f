"""The language audit, against golden cases and against plain slow definitions of its rules."""

import json
import random
from pathlib import Path

import pytest

from evolving_rl_jax.skills import AuditRules, audit
from evolving_rl_jax.types import Task

GOLDEN = json.loads((Path(__file__).parent / "golden" / "skill_audit.json").read_text())["cases"]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["id"])
def test_golden(case):
    result = audit(case["text"])._asdict()
    assert {key: result[key] for key in case["expected"]} == case["expected"]
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
    result = audit("\u200b\u00e9 " + "x" * 9, leakage_texts=["XXXXXXXXX"], max_chars=3)
    assert not result.passed and len(result.reasons) == 5
    assert "U+200B" in result.reasons[0] and "U+00E9" in result.reasons[1]


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
