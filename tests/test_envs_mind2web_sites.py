"""Generated sites: splits, habits of four kinds, and endings that say nothing of what is annotated."""

import json

import numpy as np
import pytest
from doubles import make_task
from web_data import SMALL

from evolving_rl_jax import envs
from evolving_rl_jax.envs.mind2web import env as mind2web
from evolving_rl_jax.envs.mind2web.env import split_observation
from evolving_rl_jax.envs.mind2web.index import build_index
from evolving_rl_jax.envs.mind2web.records import from_official
from evolving_rl_jax.envs.mind2web.site_kinds import VERBS
from evolving_rl_jax.envs.mind2web.sites import generate_sites, plan_sites
from evolving_rl_jax.envs.mind2web.store import load_web_tasks
from evolving_rl_jax.envs.mind2web.teacher import WebExpert
from evolving_rl_jax.rollout import known_facts
from evolving_rl_jax.types import Episode, Turn

pytest.importorskip("tensorflow_datasets")


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sites")
    generate_sites(folder / "raw", seed=3, spec=SMALL)
    report = build_index([folder / "raw"], folder / "out", budgets=(200,))
    return folder, report, load_web_tasks(folder / "out")


def test_generated_data_has_the_splits_of_the_spec(sites):
    _, report, tasks = sites
    assert report.counts == {
        "train": 12,
        "test_task": 4,
        "test_website": 8,
        "test_website_sources": 4,
        "test_domain": 8,
        "test_domain_sources": 4,
        "warmstart": 12,
    }
    assert not report.problems and not report.duplicates
    assert all(figures == {0: 1.0, 200: 1.0} for figures in report.recall.values())
    groups = {split: {t.group for t in tasks if t.split == split} for split in report.counts}
    assert groups["test_task"] == groups["train"]
    assert groups["test_website"] == groups["test_website_sources"]
    apart = [groups[s] for s in ("train", "test_website", "test_domain", "warmstart")]
    assert sum(map(len, apart)) == len(set().union(*apart))
    domains = {s: {t.task_type for t in tasks if t.split == s} for s in report.counts}
    assert domains["train"] == domains["test_website"] == {"Shopping", "Travel"}
    assert domains["test_domain"] == {"Service", "Info"} and len(domains["warmstart"]) == 4


def test_the_plan_of_a_spec_is_what_is_generated(sites):
    planned = sorted(plan_sites(SMALL))
    assert planned == sorted((t.split, t.task_type) for t in sites[2])


def solution_action(observation, step):
    line = next(
        x for x in split_observation(observation)[2]
        if f'{step["role"]} "{step["label"]}"' in x and (not step["context"] or f"({step['context']})" in x)
    )  # fmt: skip
    ref = line.split("[ref=")[1].split("]")[0]
    return json.dumps({"op": step["op"], "ref": ref, "value": step["value"]})


def test_every_generated_task_is_won_by_its_solution_and_lost_by_any_other_choice(sites):
    _, _, tasks = sites
    env = envs.make("mind2web", snapshot_tokens=150)
    verbs = set()
    for task in tasks:
        reply = env.reset(task)
        for step in task.meta["solution"]:
            assert len(reply.text) < 900 and not reply.text.endswith("not shown)")
            reply = env.step(solution_action(reply.text, step))
        assert reply.won and len(task.meta["solution"]) <= 4
        at = [i for i, step in enumerate(task.meta["solution"]) if step["slot"]]
        assert len(at) == len(task.meta["habits"]) == 2
        for i in at:
            step = task.meta["solution"][i]
            choices = task.meta["habits"][step["slot"]]
            assert sorted(step["choices"]) == sorted(choices) and len(set(choices)) == 3
            verbs.add(VERBS[step["slot"]])
            for choice in choices:
                reply = env.reset(task)
                for before in task.meta["solution"][:i]:
                    reply = env.step(solution_action(reply.text, before))
                reply = env.step(solution_action(reply.text, step["choices"][choice]))
                right = choice == choices[0]
                assert reply.info["correct"] == right and (right or reply.done)
    assert verbs == {"press", "use", "write", "set"}


def test_a_player_that_knows_no_habits_wins_one_task_of_nine(sites):
    _, _, tasks = sites
    env, won, plays = envs.make("mind2web", snapshot_tokens=150), 0, 40
    for task in tasks:
        for i in range(plays):
            expert = WebExpert(task, np.random.default_rng(i), {}, 0.0)
            reply = env.reset(task)
            while not getattr(reply, "done", False):
                reply = env.step(expert.act(reply.text))
            won += reply.won
    share = won / (plays * len(tasks))
    assert abs(share - 1 / 9) < 4 * np.sqrt(1 / 9 * 8 / 9 / (plays * len(tasks)))


def test_habits_are_of_the_site_and_not_on_the_page(sites):
    _, _, tasks = sites
    by_site = {}
    for task in tasks:
        assert by_site.setdefault(task.group, task.meta["habits"]) == task.meta["habits"]
    # Neither order nor numbering of equal controls tells which is right.
    places = [_place_of_right(t) for t in tasks if t.task_type == "Shopping"]
    assert 0.15 < np.mean([place == 0 for place in places]) < 0.55 and set(places) == {0, 1, 2}


def _place_of_right(task):
    env = envs.make("mind2web")
    step = task.meta["solution"][0]
    start = f'{step["role"]} "{step["label"]}"'
    lines = [x for x in split_observation(env.reset(task).text)[2] if x.startswith(start)]
    assert len(lines) == 3
    return next(i for i, line in enumerate(lines) if f"({step['context']})" in line)


def test_generation_is_a_function_of_the_seed(sites, tmp_path):
    folder, _, _ = sites
    generate_sites(tmp_path / "same", seed=3, spec=SMALL)
    generate_sites(tmp_path / "other", seed=4, spec=SMALL)
    name = "train/train_0.json"
    texts = [
        (p / name).read_text() for p in (folder / "raw", tmp_path / "same", tmp_path / "other")
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_train_sites": -1}, "num_train_sites must be an integer of at least 0, got -1"),
        (
            {"num_train_sites": 0, "num_test_task": 3},
            "num_test_task must be 0 without sites, got 3",
        ),
        ({"num_warmstart_sites": 5000}, "sites must be at most 4096 in all"),
        ({"tasks_per_site": 40}, "tasks_per_site must leave at most"),
    ],
)
def test_impossible_specs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        type(SMALL)(**changes)


def test_an_ending_says_nothing_of_the_annotation(sites):
    """Whatever is annotated on the page, and however many steps there are, the same words follow."""
    folder, _, tasks = sites
    splits = {t.split for t in tasks}
    raw = {
        record["annotation_id"]: record
        for split in splits
        for record in json.loads((folder / "raw" / split / f"{split}_0.json").read_text())
    }
    compared = 0
    for task in tasks:
        record = raw[task.id]
        for i, step in enumerate(task.meta["solution"]):
            if not step["slot"]:
                continue
            said = {}
            for right, plan in step["choices"].items():
                changed = _annotated_anew(record, i, plan)
                for choice, action in step["choices"].items():
                    if choice != right:
                        env = _playing(from_official(changed))
                        for before in task.meta["solution"][:i]:
                            seen = env.step(solution_action(env.seen, before))
                            env.seen = seen.text
                        last = env.step(solution_action(env.seen, action))
                        assert last.done and not last.won
                        said.setdefault(choice, set()).add(last.text)
            assert set(said) == set(step["choices"])
            assert all(len(texts) == 1 for texts in said.values()), said
            compared += len(said)
    assert compared >= 3 * len(tasks)


def _annotated_anew(record, i, plan):
    """A record whose step ``i`` has another right action, and which ends there or goes on."""
    record = json.loads(json.dumps(record))
    action = record["actions"][i]
    task = from_official(record)
    page = task.steps[i].page
    (node,) = [
        e.node_id for e in page.elements
        if (e.role, e.label, e.context) == (plan["role"], plan["label"], plan["context"])
    ]  # fmt: skip
    candidates = action["pos_candidates"] + action["neg_candidates"]
    action["pos_candidates"] = [c for c in candidates if c["backend_node_id"] == node]
    action["neg_candidates"] = [c for c in candidates if c["backend_node_id"] != node]
    action["operation"] = {"op": plan["op"], "original_op": plan["op"], "value": plan["value"]}
    if plan["value"] > "m" or plan["context"] > "m":  # some have more steps after it, some none
        record["actions"] = record["actions"][: i + 1]
        record["action_reprs"] = record["action_reprs"][: i + 1]
    return record


def _playing(web_task):
    """An environment in the middle of a task that is in no folder."""
    env = envs.make("mind2web", snapshot_tokens=150)
    store = env._store
    env._store = type(store)(mind2web.Options(snapshot_tokens=150))
    env._store.task = lambda _path: web_task
    env.seen = env.reset(make_task("x", env="mind2web")).text
    return env


@pytest.mark.parametrize(("attempts", "seen"), [(1, 0.222), (2, 0.506), (3, 0.641)])
def test_what_attempts_of_a_guessing_player_reveal(sites, attempts, seen):
    """As the table in docs/mind2web.md has it."""
    _, _, tasks = sites
    env, shares = envs.make("mind2web", snapshot_tokens=150), []
    for i, task in enumerate(tasks * 4):
        played = []
        for attempt in range(attempts):
            expert = WebExpert(task, np.random.default_rng([i, attempt]), {}, 0.0)
            turns, rewards, reply = [], [], env.reset(task)
            while not getattr(reply, "done", False):
                action = expert.act(reply.text)
                turns.append(Turn(reply.text, "", action, True))
                reply = env.step(action)
                rewards.append(reply.reward)
            played.append(Episode(task, turns, reply.won, "ok", [], rewards=rewards))
        shares.append(known_facts.share_seen(*played))
    assert abs(np.mean(shares) - seen) < 4 * np.std(shares) / np.sqrt(len(shares))


def test_generated_tasks_are_not_sealed(sites):
    """The archive of the published test splits has a password; what is generated may be quoted."""
    _, _, tasks = sites
    assert {t.split for t in tasks} > {"test_task", "test_website", "test_domain"}
    assert not any(t.meta["sealed"] for t in tasks)
    assert all(t.meta["answers"] for t in tasks)


def test_a_teacher_goes_on_where_its_element_is_not_shown(sites):
    _, _, tasks = sites
    env, missed = envs.make("mind2web", snapshot_tokens=20), 0
    for i, task in enumerate(tasks):
        expert, reply = WebExpert(task, np.random.default_rng(i), {}, 0.0), env.reset(task)
        while not getattr(reply, "done", False):
            reply = env.step(expert.act(reply.text))
        missed += not reply.won
    assert missed


def test_more_open_tasks_than_are_kept_are_read_once_each(sites, monkeypatch):
    from evolving_rl_jax.envs.mind2web import store

    reads, read = [], store.read_task
    monkeypatch.setattr(store, "read_task", lambda path: reads.append(path) or read(path))
    _, _, tasks = sites
    made = [envs.make("mind2web", snapshot_tokens=151, max_tasks=2) for _ in tasks[:5]]
    replies = [env.reset(task) for env, task in zip(made, tasks, strict=False)]
    for env, task in zip(made, tasks, strict=False):
        expert = WebExpert(task, np.random.default_rng(0), {}, 0.0)
        env.step(expert.act(replies[made.index(env)].text))
    assert len(reads) == 5
