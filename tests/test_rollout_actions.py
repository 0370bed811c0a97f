"""Reading actions from model text, against golden cases and seeded noise."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from evolving_rl_jax.envs.answers import parse_compact, parse_tagged

GOLDEN = json.loads((Path(__file__).parent / "golden" / "actions_alfworld.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["id"])
def test_tagged_golden(case):
    expected = case["expected"]
    assert parse_tagged(case["input"]) == (expected["action"], expected["valid"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mug> go to cabinet 3", ("mug", "go to cabinet 3", True)),
        ("  Mug >  Go To cabinet 3 \n", ("mug", "go to cabinet 3", True)),
        ("mug> look > here", ("mug", "look > here", True)),
        ("look", ("", "look", False)),
        ("> look", ("", "look", False)),
        ("mug>", ("mug", "", False)),
        ("mug> go to\ncabinet 3", ("mug", "go to\ncabinet 3", False)),
        ("mug\n> look", ("mug", "look", False)),
        ("", ("", "", False)),
    ],
)
def test_compact(text, expected):
    assert parse_compact(text) == expected


def test_random_text_never_raises_and_valid_means_nonempty():
    rng = random.Random(0)
    parts = [
        "<action>",
        "</ACTION>",
        "<Reasoning>",
        "</reasoning>",
        ">",
        "look",
        " ",
        "\n",
        "é",
        "\u4e2d",
        "\ud800",
        "\u0130",
        "<action",
        "x" * 40,
    ]
    for _ in range(2000):
        text = "".join(rng.choices(parts, k=rng.randrange(12)))
        action, valid = parse_tagged(text)
        assert isinstance(action, str) and (action.strip() or not valid)
        target, action, valid = parse_compact(text)
        assert not valid or (target and action and "\n" not in target + action)


def test_many_unclosed_tags_are_read_in_one_pass():
    text = "<action>" * 200_000 + "<reasoning>" * 200_000  # a quadratic scan would take hours
    assert parse_tagged(text) == (text[-30:], False)


def test_actions_and_skills_do_not_import_jax():
    code = (
        "import sys, evolving_rl_jax.skills, evolving_rl_jax.envs.answers\n"
        "print(sorted({'jax', 'jaxlib', 'sklearn', 'flax'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ('```json\n{"op": "CLICK", "ref": "e3"}\n```', ("CLICK", 3, "")),
        ('{"op": "CLICK", "ref": 3}', ("CLICK", 3, "")),
        ('{"op": "CLICK", "ref": "3"}.', ("CLICK", 3, "")),
        ('{"op": "TYPE", "ref": "e1", "value": 0.10}', ("TYPE", 1, "0.10")),
        ('{"op": "TYPE", "ref": "e1", "value": 1e3}', ("TYPE", 1, "1e3")),
        ('{"op": "TYPE", "ref": "e1", "value": true}', ("TYPE", 1, "true")),
        ('{"op": "CLICK", "ref": "e3"} {"op": "CLICK", "ref": "e4"}', None),
        ('first {"op": "CLICK", "ref": "e3"}', None),
    ],
)
def test_web_actions_as_chat_models_write_them(said, expected):
    from evolving_rl_jax.envs.web.actions import parse_action

    for text in (said, f"<action>{said}</action>"):
        assert parse_action(text) == expected
