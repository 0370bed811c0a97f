"""Parsing and rendering of skills, against golden cases, broken text and seeded noise."""

import json
import random
from pathlib import Path

import pytest

from evolving_rl_jax.skills import Skill, parse_skill, render_skill

GOLDEN = json.loads((Path(__file__).parent / "golden" / "skill_json.json").read_text())["cases"]
SKILL = '{"name": "n", "description": "d"}'


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["id"])
def test_golden(case):
    skill, reason = parse_skill(case["input"])
    # "either" marks text that a good parser can read: it is accepted here
    assert (skill is not None) == (case["expected"] != "invalid")
    assert bool(reason) == (skill is None) and "\n" not in reason


def test_which_of_several_objects_wins():
    texts = {case["id"]: case["input"] for case in GOLDEN}
    assert parse_skill(texts["two_skills_longer_wins"])[0].name == "longer-name"
    assert parse_skill(texts["two_skills_same_length_last_wins"])[0].name == "bbb"
    assert parse_skill(texts["fence_then_larger_raw"])[0].name == "final-one"
    assert parse_skill(texts["wrapper_with_required"])[0].name == "outer"
    assert parse_skill(f'{{"skill": {SKILL}, "score": 3}}')[0].name == "n"


@pytest.mark.parametrize(
    "prefix",
    [
        "smile :{ ",
        'a {"stray quote} and then ',
        '{"name": "n", "descr\n\nAgain: ',
        "[1, ",
        "{} ",
        '{"a": [\n\nLet me start again: ',
        "\\",
        '"',
        "{'a'} ",
    ],
)
def test_skill_after_rubble_is_found(prefix):
    skill, reason = parse_skill(prefix + SKILL)
    assert skill is not None and skill.name == "n", reason


def test_parts_of_a_broken_skill_are_no_skill():
    inner = '{"name": "step", "description": "part of the outer skill"}'
    assert parse_skill(f'{{"name": "n", "description": "d", "workflow": [{inner}],}}')[0] is None
    assert parse_skill(f'{{"description": "d", "workflow": [{inner}]}}')[0] is None


def test_wrong_types_become_text():
    skill, _ = parse_skill(
        json.dumps(
            {
                "name": 7,
                "description": ["a", {"b": 2}],
                "when_to_use": {"if": "lost"},
                "workflow": ["go", {"step": 2, "goal": "take", "action": ["x", None]}, None, {}, 5],
                "decision_rules": "always",
                "error_handling": {"error": "e", "cause": "c"},
                "metadata": [1],
            }
        )
    )
    assert (skill.name, skill.description) == ("7", "a; b: 2")
    assert skill.when_to_use == ("if: lost",)
    assert skill.workflow == ({"action": "go"}, {"goal": "take", "action": "x"}, {"action": "5"})
    assert skill.decision_rules == ("always",)
    assert skill.error_handling == ({"error": "e", "cause": "c"},)
    assert skill.extra == {"metadata": [1]}


def test_numbered_workflow_objects_become_steps():
    skill, _ = parse_skill(
        '{"name": "n", "description": "d", "workflow": {"1": "go", "step 2": {"goal": "take"}}}'
    )
    assert skill.workflow == ({"action": "go"}, {"goal": "take"})


@pytest.mark.parametrize(
    "text",
    [
        '{"a":' * 100_000,
        '{"name": "n", "description": "d", "workflow": ' + "[" * 500 + "]" * 500 + "}",
        "[" * 100_000 + SKILL,
        '{"' * 100_000,
        '{"a": 1, ' * 100_000,
        '{"name": "' + "x" * 3_000_000,
        '{"name": "n", "description": "' + "\\" * 1_000_001 + '"}',
        '{"name": ' + "9" * 10_000 + ', "description": 1e999}',
        '{"name": NaN, "description": -Infinity}',
        '{"name": "\\ud800", "description": "\\u0000"}',
        "\ud800" + SKILL,
        None,
        b"{}",
        17,
    ],
    ids=lambda text: repr(text)[:20],
)
def test_hostile_input_gives_a_verdict(text):
    skill, reason = parse_skill(text)
    assert (skill is None) == bool(reason)
    if skill is not None:  # what is accepted can be stored, encoded and read back
        dumped = json.dumps(skill.to_dict(), allow_nan=False, ensure_ascii=False).encode()
        assert Skill.from_dict(json.loads(dumped)) == skill
        render_skill(skill).encode()


def test_long_description_is_kept():
    skill, _ = parse_skill('{"name": "n", "description": "' + "x" * 2_000_000 + '"}')
    assert len(skill.description) == 2_000_000


def _random_json(rng, depth=0):
    kind = rng.randrange(8 if depth < 4 else 5)
    if kind < 5:
        texts = ["", " ", "go\nthere", "é\u2028{", '"', "3."]
        return rng.choice([None, True, 0, -1.5, 10**30, *texts])
    keys = [
        "name",
        "description",
        "workflow",
        "step",
        "goal",
        "when_to_use",
        "error_handling",
        "decision_rules",
        "metadata",
        "x y",
    ]
    if kind == 5:
        return [_random_json(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {rng.choice(keys): _random_json(rng, depth + 1) for _ in range(rng.randrange(6))}


def test_random_objects_round_trip():
    rng = random.Random(1)
    accepted = 0
    for _ in range(3000):
        data = {
            "name": "n",
            "description": "d",
            **{
                key: _random_json(rng)
                for key in ("workflow", "error_handling", "when_to_use", "tips")
            },
        }
        skill, reason = parse_skill("Sure:\n" + json.dumps(data, ensure_ascii=rng.random() < 0.5))
        assert skill is not None, reason
        assert Skill.from_dict(skill.to_dict()) == skill
        assert render_skill(skill) and "\n" not in render_skill(skill, "compact")
        skill, _ = parse_skill(json.dumps(_random_json(rng)))
        accepted += skill is not None
    assert accepted  # the random texts hold skills too


def test_mutated_text_never_raises():
    rng = random.Random(2)
    source = next(case["input"] for case in GOLDEN if case["id"] == "full_indented")
    for _ in range(2000):
        text = list(source)
        for _ in range(rng.randrange(1, 6)):
            position = rng.randrange(len(text))
            text[position] = rng.choice([*'"{}[],:\\\n', "", "\ud83d"])
        skill, reason = parse_skill("".join(text)[: rng.randrange(len(source) * 2)])
        assert (skill is None) == bool(reason)


def test_markdown_names_every_section():
    source = next(case["input"] for case in GOLDEN if case["id"] == "full_compact")
    text = render_skill(parse_skill(source)[0])
    assert text.startswith("# Skill: find-and-place\n\nFind an object")
    for part in (
        "## Overview",
        "## When to use",
        "## Workflow",
        "## Decision rules",
        "## Error handling",
        "## When not to use",
        "## Inputs to identify",
        "## Output requirements",
        "2. **Take**: take it",
        "cause: wrong place",
    ):
        assert part in text
    assert "abstraction" not in text  # metadata is for reports


def test_compact_is_one_line():
    skill = Skill(name="mug", description="kept in\n cabinet 3")
    assert render_skill(skill, "compact") == "mug: kept in cabinet 3"


@pytest.mark.parametrize("limit", [1, 2, 5, 12, 20, 40, 10_000])
@pytest.mark.parametrize("style", ["markdown", "compact"])
def test_limit_is_kept_and_used(limit, style):
    source = next(case["input"] for case in GOLDEN if case["id"] == "full_compact")
    skill = parse_skill(source)[0]

    def count(text):
        return len(text.split())

    full, text = render_skill(skill, style), render_skill(skill, style, limit, count)
    assert full.startswith(text) and text
    assert count(text) <= limit and not text.rstrip().endswith("## Workflow")
    assert text == full or limit < count(full)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("html",), "style must be"),
        (("compact", 0, len), "max_tokens must be"),
        (("compact", 5), "count_tokens must be"),
    ],
)
def test_render_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        render_skill(Skill("n", "d"), *arguments)
