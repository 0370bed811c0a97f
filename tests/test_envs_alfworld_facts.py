"""Facts in observations and in skills, against texts written by hand and the engine's own words."""

import json

import numpy as np
import pytest
from doubles import make_task

from evolving_rl_jax.envs.alfworld import facts
from evolving_rl_jax.skills.schema import parse_skill

MUG = make_task("t", meta={"object": "mug", "place": "cabinet 3", "habits": {}})
OPENED = "You open the cabinet 3. The cabinet 3 is open. In it, you see a mug 1, and a plate 2."
EMPTY = "You open the drawer 1. The drawer 1 is open. In it, you see nothing."
SURFACE = "You arrive at countertop 1. On the countertop 1, you see an apple 1, and a saltshaker 2."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (OPENED, {"cabinet 3": ["mug", "plate"]}),
        (EMPTY, {"drawer 1": []}),
        (SURFACE, {"countertop 1": ["apple", "saltshaker"]}),
        ("You arrive at cabinet 3. The cabinet 3 is closed.", {}),
        ("Nothing happens.", {}),
        ("You pick up the mug 1 from the cabinet 3.", {}),
    ],
)
def test_what_one_observation_shows(text, expected):
    assert facts.seen_contents([text]) == expected


def test_a_place_is_remembered_as_it_was_first_seen():
    later = "You arrive at cabinet 3. The cabinet 3 is open. In it, you see a plate 2."
    seen = facts.seen_contents(["room", OPENED, later, EMPTY])
    assert seen == {"cabinet 3": ["mug", "plate"], "drawer 1": []}


@pytest.mark.parametrize(
    ("observations", "seen"),
    [
        ([OPENED], True),
        ([EMPTY, SURFACE], False),
        ([OPENED.replace("cabinet 3", "cabinet 1")], False),
    ],
)
def test_the_decisive_fact_is_the_own_object_in_its_place(observations, seen):
    assert facts.fact_seen(MUG, observations) == seen


@pytest.mark.parametrize(
    ("text", "kept", "excluded", "stated"),
    [
        ("the mug is in cabinet 3", {"mug": "cabinet 3"}, {}, True),
        ("the mug is not in cabinet 3", {}, {"mug": {"cabinet 3"}}, False),
        ("the mug is in cabinet 1", {"mug": "cabinet 1"}, {}, False),
        ("the egg is in cabinet 3", {"egg": "cabinet 3"}, {}, False),
        (
            "Note: the egg is in drawer 2, the mug is in cabinet 3; the mug is not in drawer 1.",
            {"egg": "drawer 2", "mug": "cabinet 3"},
            {"mug": {"drawer 1"}},
            True,
        ),
        ("find the mug", {}, {}, False),
    ],
)
def test_claims_of_a_skill(text, kept, excluded, stated):
    assert facts.claims(text) == (kept, excluded)
    assert facts.fact_stated(MUG, text) == stated


def test_sentences_are_read_back_as_written():
    rng = np.random.default_rng(0)
    for _ in range(50):
        obj = str(rng.choice(["mug", "egg", "plate"]))
        place = f"{rng.choice(['cabinet', 'drawer'])} {rng.integers(1, 12)}"
        assert facts.claims(facts.fact_sentence(obj, place)) == ({obj: place}, {})
        negated = facts.fact_sentence(obj, place, negated=True)
        assert facts.claims(negated) == ({}, {obj: {place}})
        text = facts.skill_json(obj, negated)
        assert json.loads(text)["description"] == negated
        assert parse_skill(text)[0].name == f"find {obj}"


def test_the_engine_words_its_observations_like_that(household_games):
    """Walkthroughs of generated games, played: they open the place where the object is kept."""
    from evolving_rl_jax import envs

    environment = envs.make("alfworld")
    for task in household_games[:6]:
        observations = [environment.reset(task).text]
        assert not facts.fact_seen(task, observations)
        for action in task.meta["walkthrough"]:
            observations.append(environment.step(action).text)
        contents = facts.seen_contents(observations)
        assert facts.fact_seen(task, observations), (task.id, contents)
        for place, kinds in contents.items():
            kept = {o.rsplit(" ", 1)[0] for o, p in task.meta["things"].items() if p == place}
            assert set(kinds) <= kept
    environment.close()
