"""Facts that a task states, seen by episodes and stated by skills, of households and of web sites."""

from doubles import compact_prompts, make_task

from evolving_rl_jax.rollout import known_facts
from evolving_rl_jax.types import Episode, Turn

PROMPTS = compact_prompts()
HOME = make_task(
    "h",
    meta={"object": "mug", "place": "cabinet 3", "habits": {"mug": "cabinet 3", "pan": "drawer 1"}},
)
SITE = make_task(
    "w",
    env="mind2web",
    group="birch bay",
    meta={
        "habits": {"search": ["left", "right"], "save": ["top", "bottom"]},
        "solution": [
            {"label": "search", "slot": "search"},
            {"label": "add", "slot": ""},
            {"label": "save", "slot": "save"},
        ],
    },
)
PAGE = """Task: x
Earlier actions:
none
Page:
button "{0}" ({1}) [ref=e1]
button "{0}" ({2}) [ref=e2]"""


def episode(task, observations, actions, won=False):
    turns = [Turn(o, "", a, True) for o, a in zip(observations, actions, strict=True)]
    return Episode(task, turns, won, "ok", [], last_observation="")


def web_episode(*refs, won=False):
    pages = [
        PAGE.format("search", "left", "right"),
        PAGE.format("add", "a", "b"),
        PAGE.format("save", "top", "bottom"),
    ]
    actions = [f'{{"op": "CLICK", "ref": "e{r}"}}' for r in refs]
    return episode(SITE, pages[: len(refs)], actions, won)


def test_given_skills():
    assert (
        known_facts.given_skill("none", HOME, 0, PROMPTS)
        == ""
        == known_facts.given_skill("none", SITE, 0, PROMPTS)
    )
    assert known_facts.given_skill("oracle", HOME, 0, PROMPTS) == "the mug is in cabinet 3"
    assert known_facts.given_skill("misleading", HOME, 0, PROMPTS) == "the mug is in drawer 1"
    assert (
        known_facts.given_skill("oracle", SITE, 0, PROMPTS) == "press search left, press save top"
    )
    assert (
        known_facts.given_skill("misleading", SITE, 1, PROMPTS)
        == "press search right, press save bottom"
    )


def test_what_a_web_episode_showed_and_a_skill_states():
    one, both = web_episode(2), web_episode(1, 1, 2)
    assert known_facts.share_seen(one) == 0.5 and known_facts.share_seen(both) == 1.0
    right = "press search left, press save top"
    assert known_facts.share_stated(one, right) == 0.5  # the other was a guess
    assert known_facts.share_stated(both, right) == 1.0
    assert known_facts.share_stated(both, "press search left, press save bottom") == 0.5
    assert known_facts.share_stated(both, "") == 0.0


def test_what_a_household_episode_showed_and_a_skill_states():
    seen = episode(HOME, ["The cabinet 3 is open. In it, you see a mug 1."], ["x"])
    missed = episode(HOME, ["The drawer 1 is open. In it, you see a pan 1."], ["x"])
    assert known_facts.share_seen(seen) == 1.0 and known_facts.share_seen(missed) == 0.0
    assert known_facts.share_stated(seen, "the mug is in cabinet 3") == 1.0
    assert known_facts.share_stated(missed, "the mug is in cabinet 3") == 0.0
    assert known_facts.share_seen(episode(make_task("x"), [], [])) is None
