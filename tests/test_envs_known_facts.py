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
    rewards = [1.0] * (len(turns) - 1) + [float(won)]  # as web tasks pay: what was right
    return Episode(task, turns, won, "ok", [], last_observation="", rewards=rewards)


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


THREE = make_task(
    "w3",
    env="mind2web",
    group="birch bay",
    meta={
        "habits": {"checkout": ["left", "right", "middle"], "arrival": ["day", "month", "slash"]},
        "solution": [
            {
                "slot": "checkout",
                "choices": {
                    place: {"role": "button", "label": "checkout", "context": place, "op": "CLICK",
                            "value": ""}
                    for place in ("left", "right", "middle")
                },
            },
            {"slot": "", "choices": {}},
            {
                "slot": "arrival",
                "choices": {
                    name: {"role": "textbox", "label": "arrival", "context": "", "op": "TYPE",
                           "value": value}
                    for name, value in (
                        ("day", "fifth may"), ("month", "may fifth"), ("slash", "may / fifth")
                    )
                },
            },
        ],
    },
)  # fmt: skip
BUTTONS = "\n".join(
    f'button "checkout" ({p}) [ref=e{i}]' for i, p in enumerate(("left", "right", "middle"), 1)
)


def attempt(*actions, won=False):
    """Presses a place, goes on, writes a date; as far as there are actions."""
    pages = [BUTTONS, 'link "next" [ref=e1]', 'textbox "arrival" [ref=e1]']
    seen = [f"Task: x\nEarlier actions:\nnone\nPage:\n{page}" for page in pages]
    return episode(THREE, seen[: len(actions)], actions, won)


def click(ref):
    return f'{{"op": "CLICK", "ref": "e{ref}"}}'


def written(value):
    return f'{{"op": "TYPE", "ref": "e1", "value": "{value}"}}'


def test_what_attempts_show_together_and_a_skill_states():
    seen, stated = known_facts.share_seen, known_facts.share_stated
    right, middle = attempt(click(2)), attempt(click(3))
    assert seen(right) == 0 and seen(right, right) == 0  # one place of three is ruled out
    assert seen(right, middle) == 0.5  # the third is left
    assert stated(right, "press checkout left", middle) == 0.5
    assert stated(right, "press checkout left") == 0  # a guess
    went_on = attempt(click(1), click(1), written("fifth may"))
    assert seen(went_on) == 0.5 and seen(attempt(click(1), click(1))) == 0.5
    other = attempt(click(1), click(1), written("May  Fifth"))
    assert seen(went_on, other) == 1.0 == seen(attempt(*[click(1)] * 2, written("x"), won=True),
                                               went_on, other)  # fmt: skip
    both = "press checkout left, write arrival slash"
    assert stated(went_on, both, other) == 1.0 and stated(went_on, both) == 0.5
    assert stated(went_on, "press checkout left, write arrival month", other) == 0.5
    won = attempt(click(1), click(1), written("may / fifth"), won=True)
    assert seen(won) == 1.0 and stated(won, both, right) == 1.0
    typed = attempt('{"op": "TYPE", "ref": "e2", "value": "x"}')
    assert seen(typed, middle) == 0  # another operation on it rules nothing out


def test_what_a_household_episode_showed_and_a_skill_states():
    seen = episode(HOME, ["The cabinet 3 is open. In it, you see a mug 1."], ["x"])
    missed = episode(HOME, ["The drawer 1 is open. In it, you see a pan 1."], ["x"])
    assert known_facts.share_seen(seen) == 1.0 and known_facts.share_seen(missed) == 0.0
    assert known_facts.share_stated(seen, "the mug is in cabinet 3") == 1.0
    assert known_facts.share_stated(missed, "the mug is in cabinet 3") == 0.0
    assert known_facts.share_seen(episode(make_task("x"), [], [])) is None
