"""The replay environment: observations, both protocols, blindness to the gold, failures as statuses."""

import copy
import dataclasses
import json
import random
import subprocess
import sys

import pytest
from web_data import FORM, action, official, write_split

from evolving_rl_jax import envs
from evolving_rl_jax.envs.base import EnvError
from evolving_rl_jax.envs.mind2web.endings import split_ending
from evolving_rl_jax.envs.mind2web.env import (
    gold_line,
    observation_text,
    split_observation,
)
from evolving_rl_jax.envs.mind2web.index import build_index
from evolving_rl_jax.envs.mind2web.recall import GoldRecall
from evolving_rl_jax.envs.mind2web.records import from_official
from evolving_rl_jax.envs.mind2web.store import load_web_tasks
from evolving_rl_jax.envs.pool.pool import EnvPool
from evolving_rl_jax.envs.web.snapshot import snapshot
from evolving_rl_jax.types import ENV_ERROR, OK, Task

pytest.importorskip("tensorflow_datasets")

TYPE = '<action>{"op": "TYPE", "ref": "e1", "value": "oslo"}</action>'
CLICK = '{"op": "CLICK", "ref": "e%d"}'


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """t1 as it is; t2 with a gold element that is nowhere; t3 with words in another order."""
    source, out = (tmp_path_factory.mktemp("web") / name for name in ("source", "out"))
    lost = official("t2")
    lost["actions"][1]["pos_candidates"] = []
    words = official("t3")
    words["actions"][0]["operation"]["value"] = "Oslo Norway"
    write_split(source, "train", [official("t1"), lost, words])
    build_index([source], out)
    return load_web_tasks(out)


def play(task, actions, **options):
    env = envs.make("mind2web", **options)
    return [env.reset(task), *map(env.step, actions)]


def test_observations_have_task_earlier_actions_and_page(tasks):
    first, second, third, last = play(tasks[0], [TYPE, CLICK % 2, CLICK % 3])
    page = 'textbox "City" [ref=e1]\nbutton "Search" [ref=e2]\nbutton "Help" [ref=e3]'
    start = "Task: Find a room in Oslo (t1)\nSite: rooms\nEarlier actions:\n"
    assert first.text == f"{start}none\nPage:\n{page}" and first.actions == ()
    assert second.text == f'{start}1. TYPE textbox "City": oslo\nPage:\n{page}'
    assert third.text.split("\nPage")[0].endswith('oslo\n2. CLICK button "Search"')
    said, *went_on = last.text.splitlines()
    assert said == "The task is completed: all 3 actions were right."
    assert went_on[1:] == [
        '1. TYPE textbox "City": oslo',
        '2. CLICK button "Search"',
        '3. CLICK button "Help"',
    ]
    assert [(r.reward, r.done, r.won) for r in (second, third, last)] == [
        (1.0, False, False),
        (1.0, False, False),
        (1.0, True, True),
    ]
    assert split_observation(third.text) == (
        "Find a room in Oslo (t1)",
        ['TYPE textbox "City": oslo', 'CLICK button "Search"'],
        page.splitlines(),
    )
    assert split_observation(last.text) == (last.text, [], [])


def test_stop_at_error_ends_at_the_first_wrong_action(tasks):
    *_, last = play(tasks[0], [TYPE, CLICK % 3])
    assert (last.reward, last.done, last.won) == (0.0, True, False)
    assert last.text == (
        'CLICK button "Help": nothing happened. The task has ended.\nThese actions went on:\n'
        '1. TYPE textbox "City": oslo'
    )
    assert play(tasks[0], [CLICK % 3])[-1].text == last.text.partition("\n")[0]
    env = envs.make("mind2web")
    env.reset(tasks[0])
    env.step("nonsense")
    with pytest.raises(EnvError, match="after the end"):
        env.step(TYPE)


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ("nonsense", "The action could not be read."),
        (CLICK % 9, "There is no e9 on the page."),
        (CLICK % 3, 'CLICK button "Help": nothing happened.'),
        (
            '{"op": "TYPE", "ref": "e3", "value": "a\\nb"}',
            'TYPE button "Help": a b: it takes no text.',
        ),
        ('{"op": "SELECT", "ref": "e1", "value": "x"}', 'SELECT textbox "City": x: it is no list.'),
        ('{"op": "HOVER", "ref": "e1"}', 'CLICK textbox "City": nothing happened.'),
    ],
)
def test_an_ending_says_what_a_person_at_the_page_would_see(tasks, action, said):
    *_, last = play(tasks[0], [TYPE, action])
    assert last.text.startswith(f"{said} The task has ended.\n") and not last.won
    assert split_ending(last.text) == (said, ['TYPE textbox "City": oslo'])
    *_, won = play(tasks[0], [TYPE, CLICK % 2, CLICK % 3])
    told = ['TYPE textbox "City": oslo', 'CLICK button "Search"', 'CLICK button "Help"']
    assert won.won and split_ending(won.text) == ("", told)
    assert split_ending("The task has ended: 1 of 3 actions were right.") == ("", [])


def test_teacher_forced_plays_all_steps_with_the_gold_history(tasks):
    _, second, third, last = play(
        tasks[0], ["nonsense", CLICK % 9, CLICK % 3], protocol="teacher_forced"
    )
    assert split_observation(second.text)[1] == ['TYPE textbox "City": Oslo']
    assert split_observation(third.text)[1][1] == 'CLICK button "Search"'
    assert [r.info["reason"] for r in (second, third, last)] == [
        "invalid_action_format",
        "unknown_ref",
        "ok",
    ]
    assert (last.done, last.won, last.reward) == (True, False, 1.0)
    assert last.text == "The task has ended: 1 of 3 actions were right."


def test_a_task_can_name_its_protocol(tasks):
    actions = ["nonsense", CLICK % 9, CLICK % 3]
    forced = dataclasses.replace(tasks[0], meta={"protocol": "teacher_forced"})
    env = envs.make("mind2web")  # plays both in turn
    for task, expected in (
        (forced, play(tasks[0], actions, protocol="teacher_forced")),
        (tasks[0], play(tasks[0], actions[:1])),
    ):
        found = [env.reset(task), *map(env.step, actions[: len(expected) - 1])]
        assert found == expected
    with pytest.raises(EnvError, match="protocol of t1 must be one of"):
        env.reset(dataclasses.replace(tasks[0], meta={"protocol": "x"}))


def test_scores_of_a_step(tasks):
    _, reply, *_ = play(tasks[2], [TYPE.replace("oslo", "Norway Oslo")])
    info = reply.info
    # sets of words agree, the texts do not
    assert (info["element"], info["f1"], info["success"], info["correct"]) == (
        True,
        1.0,
        True,
        False,
    )
    _, reply = play(tasks[2], [TYPE.replace('"e1"', '"e2"')])
    assert (reply.info["element"], reply.info["success"]) == (False, False)
    assert reply.info["f1"] == pytest.approx(2 / (2 + 3))  # "oslo" is not "Oslo" there
    assert reply.info["num_steps"] == 3 and not reply.info["missing"]


def test_a_gold_element_that_is_not_shown_is_a_failure_and_marked(tasks):
    _, _, reply = play(tasks[1], [TYPE, CLICK % 2])
    assert reply.info["no_gold"] and not reply.info["correct"] and reply.done
    assert not reply.info["missing"] and reply.info["f1"] == 0.0
    # with room for one element only, whatever the agent picks cannot be right where it is not shown
    shown = play(tasks[0], [TYPE], snapshot_tokens=9)
    assert ("e1]" in shown[0].text) != shown[1].info["missing"]


def test_controls_alone_can_be_shown_under_the_numbers_of_all_elements(tmp_path):
    page = (
        '<html><div backend_node_id="1"><text backend_node_id="2">Red</text>'
        '<button backend_node_id="3">Add</button></div><a backend_node_id="4">Help</a></html>'
    )
    steps = [action(page, nodes=("3",)), action(page, nodes=("1",))]
    write_split(
        tmp_path / "source", "train", [official("t1", actions=steps, action_reprs=["", ""])]
    )
    build_index([tmp_path / "source"], tmp_path / "out", budgets=())
    (task,) = load_web_tasks(tmp_path / "out")
    lines = {
        elements: split_observation(play(task, [], elements=elements)[0].text)[2]
        for elements in ("all", "controls")
    }
    assert len(lines["all"]) == 3
    assert lines["controls"] == [line for line in lines["all"] if line.startswith(("butt", "link"))]
    ref = int(lines["controls"][0].partition("[ref=e")[2].partition("]")[0])
    # A text that is right cannot be reached then, and that is counted.
    for elements, missing in (("all", False), ("controls", True)):
        _, first, second = play(task, [CLICK % ref, CLICK % ref], elements=elements)
        assert first.reward == 1.0 and second.info["missing"] == missing
    unseen = next(n for n in range(1, 4) if f"=e{n}]" not in "".join(lines["controls"]))
    _, reply = play(task, [CLICK % unseen], elements="controls")
    assert reply.text.startswith(f"There is no e{unseen} on the page.")


def test_mistakes_are_statuses_and_errors(tasks):
    for options, message in (
        ({"elements": "some"}, "elements must be one of"),
        ({"protocol": "x"}, "protocol must be one of"),
        ({"snapshot_tokens": 0}, "snapshot_tokens must be an integer of at least 1, got 0"),
        ({"max_tasks": True}, "max_tasks must be an integer"),
        ({"size": 1}, "option of mind2web must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            envs.make("mind2web", **options)
    missing = Task("x", "mind2web", "train", "", "", tasks[0].path + "999", "h")
    with pytest.raises(EnvError, match="cannot load web task .*must be a record below 3"):
        envs.make("mind2web").reset(missing)
    with pytest.raises(EnvError, match="before reset"):
        envs.make("mind2web").step(TYPE)
    nowhere = Task("x", "mind2web", "train", "", "", "/nowhere/train/0", "h")
    with EnvPool("mind2web", num_workers=1) as pool:
        pool.reset(0, nowhere)
        pool.reset(1, tasks[0])
        replies = dict(pool.poll(20) + pool.poll(20))
    assert (replies[0].status, replies[1].status) == (ENV_ERROR, OK)
    assert "/nowhere: must hold records" in replies[0].text


def test_workers_replay_and_never_load_jax(tasks):
    with EnvPool("mind2web", num_workers=1) as pool:
        pool.reset(5, tasks[0])
        assert pool.poll(30)[0][1].status == OK
        pool.step(5, TYPE)
        ((_, reply),) = pool.poll(30)
        assert reply.info["correct"]  # what metrics need crosses the process boundary
    code = (
        "import sys; from evolving_rl_jax import envs\n"
        f"from evolving_rl_jax.types import Task\ne = envs.make('mind2web')\n"
        f"e.reset(Task('x', '', '', '', '', {tasks[0].path!r}, 'h'))\n"
        'e.step(\'{"op": "CLICK", "ref": "e1"}\')\n'
        "print(sorted({'jax', 'tensorflow', 'sklearn', 'torch'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_texts_are_the_same_in_every_run(tasks):
    actions = [TYPE, CLICK % 2, CLICK % 1]
    runs, again = (
        [[r.text for r in play(t, actions, protocol="teacher_forced", max_tasks=n)] for t in tasks]
        for n in (64, 1)
    )
    assert runs == again


# ----------------------------------------------------------------------- blindness to the gold


def big_page(rng):
    """A page whose labels partly match the task, in both forms of the markup."""
    words = "hotel oslo room search map price login paris help book family".split()
    tags = ("button", "a", "span", "div")
    parts = []
    for i in range(rng.randrange(20, 60)):
        tag, text = rng.choice(tags), " ".join(rng.choices(words, k=rng.randrange(1, 5)))
        parts.append(f'<{tag} backend_node_id="{i + 1}" class="c{i}"><text>{text}</text></{tag}>')
    return f"<html><body>{''.join(parts)}</body></html>", len(parts)


def changed_gold(data, num_nodes, rng):
    """The same task with another annotation: other nodes, attributes, operation, field of the html."""
    data = copy.deepcopy(data)
    for step in data["actions"]:
        nodes = rng.sample(range(1, num_nodes + 1), rng.randrange(0, 3))
        step["pos_candidates"] = [
            {
                "backend_node_id": str(n),
                "is_original_target": rng.random() < 0.5,
                "attributes": json.dumps({"backend_node_id": str(n), "class": "gold"}),
                "rank": rng.randrange(100),
            }
            for n in nodes
        ]
        step["neg_candidates"] = [{"backend_node_id": str(rng.randrange(num_nodes))}]
        step["operation"] = {"op": rng.choice(["CLICK", "TYPE", "SELECT"]), "value": "hotel map"}
    data["action_reprs"] = [f"[button]  {rng.random()} -> CLICK" for _ in data["actions"]]
    return data


@pytest.mark.parametrize("seed", range(25))
def test_pages_snapshots_and_prompts_do_not_depend_on_the_gold(seed):
    rng = random.Random(seed)
    html, num_nodes = big_page(rng)
    field = rng.choice(["cleaned_html", "raw_html"])
    steps = [
        action("", **{field: html}, nodes=(str(rng.randrange(1, num_nodes)),)) for _ in range(3)
    ]
    first = official(confirmed_task="book a family room at a hotel in oslo", actions=steps)
    tasks = [
        from_official(first),
        *(from_official(changed_gold(first, num_nodes, rng)) for _ in range(4)),
    ]
    history = ('CLICK button "search"',)
    for budget in (30, 100, 100_000):
        texts = set()
        for task in tasks:
            shown = snapshot(task.steps[1].page, task.text, history, budget)
            texts.add(observation_text(task.text, history, shown.text))
        assert len(texts) == 1
    assert len({t.steps[0].page for t in tasks}) == 1


def test_the_environment_shows_the_same_whatever_the_gold(tmp_path):
    """Through files, index, worker and prompt: first observations of differently annotated copies."""
    rng = random.Random(0)
    html, num_nodes = big_page(rng)
    first = official("a", actions=[action(html, nodes=("3",)) for _ in range(3)])
    copies = [first, *(changed_gold(first, num_nodes, rng) for _ in range(5))]
    for i, data in enumerate(copies):
        data["annotation_id"] = f"t{i}"
    write_split(tmp_path / "source", "train", copies)
    build_index([tmp_path / "source"], tmp_path / "out", budgets=())
    env = envs.make("mind2web", snapshot_tokens=60)
    texts = [env.reset(t).text for t in load_web_tasks(tmp_path / "out")]
    assert len(texts) == 6 and len(set(texts)) == 1 and "more not shown" in texts[0]


def test_recall_is_what_the_environment_can_show():
    task = from_official(official("x", actions=[action(FORM, nodes=("2",)), action(FORM, nodes=("77",))],
                                  action_reprs=["a", "b"]))  # fmt: skip
    recall = GoldRecall((8, 100))
    recall.add(task)
    shown = snapshot(task.steps[0].page, task.text, (), 8).shown
    assert recall.figures() == {0: 0.5, 8: 0.5 * (0 in shown), 100: 0.5}


def test_gold_lines_of_elements_that_are_nowhere():
    task = from_official(official("x", actions=[action(FORM, "TYPE", "Oslo", nodes=())],
                                  action_reprs=["[textbox]  City -> TYPE: Oslo"]))  # fmt: skip
    assert gold_line(task.steps[0]) == 'TYPE textbox "City": Oslo'
