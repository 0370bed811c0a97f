"""Retrieval by room, household or site: what comes first, what is left out, what is equal."""

import dataclasses
import random
from collections import Counter

import pytest
from embedders import _pool, _task, _worded_alike

from evolving_rl_jax.config import ConfigError, default_config, validate
from evolving_rl_jax.data.shares import retrieved_shares
from evolving_rl_jax.data.tasks import TaskOrder
from evolving_rl_jax.run.skills import check_tasks
from evolving_rl_jax.skills import Retriever
from evolving_rl_jax.skills.rotation import Rotation


def _in_rooms(seed=2, size=160, rooms=9):
    rng = random.Random(seed)
    pool = _pool(size, seed=seed)
    return [dataclasses.replace(task, group=f"room {rng.randrange(rooms)}") for task in pool]


@pytest.mark.parametrize("prefer", ["text", "group", "other"])
def test_groups_are_preferred_or_left_out(prefer):
    pool = _in_rooms()
    retriever, plain = Retriever(pool, prefer=prefer), Retriever(pool)
    for query in [*pool[:30], dataclasses.replace(pool[3], id="q", content_hash="h", group="new")]:
        ranked = [task for task, _ in plain.retrieve_scored(query, len(pool) - 1)]
        scores = {task.id: score for task, score in plain.retrieve_scored(query, len(pool) - 1)}
        own = [task for task in ranked if task.group == query.group]
        others = [task for task in ranked if task.group != query.group]
        best = {"text": ranked, "group": own + others, "other": others}[prefer]
        for k in (1, 5, len(own) + 3):
            found = retriever.retrieve_scored(query, k)
            assert [task for task, _ in found] == best[:k]
            assert [score for _, score in found] == [scores[task.id] for task in best[:k]]


@pytest.mark.parametrize("prefer", ["group", "other"])
def test_ties_within_a_preference_are_drawn(prefer):
    pool = [dataclasses.replace(t, group=f"room {i % 4}") for i, t in enumerate(_worded_alike())]
    order = TaskOrder(pool, 3)

    def played():
        retriever = Retriever(pool, prefer=prefer)
        return Rotation(
            lambda task, lots: retriever.retrieve(task, 4, lots=lots),
            lambda position: order.take(position, 1)[0],
            epoch=len(pool),
            seed=3,
        )

    first, again = played(), played()
    found = [first.at(i) for i in range(len(pool))]
    assert [again.at(i) for i in reversed(range(len(pool)))] == found[::-1]
    for source, tasks in zip(order.take(0, len(pool)), found, strict=True):
        alike = [task.group == source.group for task in tasks]
        assert not any(alike) if prefer == "other" else all(alike)
    plays = Counter(task.id for tasks in found for task in tasks)
    by_id = Retriever(pool, prefer=prefer)
    without = {t.id for source in order.take(0, len(pool)) for t in by_id.retrieve(source, 4)}
    assert len(plays) >= 0.95 * len(pool) > 1.5 * len(without)


def test_an_unknown_preference_is_refused():
    with pytest.raises(ValueError, match="prefer must be one of text, group, other, got 'room'"):
        Retriever(_pool(3), prefer="room")
    config = default_config()
    config.skills.prefer = "room"
    with pytest.raises(ConfigError, match="config.skills.prefer must be one of text, group, other"):
        validate(config)


@pytest.mark.parametrize(
    ("prefer", "k", "groups", "message"),
    [
        ("other", 3, "xxyy", "num_retrieved with config.skills.prefer: K must be at most 2, the"),
        ("other", 2, "xxyy", ""),
        ("group", 3, "xxyy", ""),
        ("text", 3, ["x", "", "y", ""], ""),
        ("other", 1, ["x", "", "y", ""], "config.skills.prefer must be 'text'.*'other' and 2 such"),
        (
            "group",
            1,
            ["", "y", "y", "y"],
            "config.skills.prefer must be 'text'.*'group' and 1 such",
        ),
    ],
)
def test_groups_that_retrieval_needs_are_looked_for_before_a_run(prefer, k, groups, message):
    config = default_config()
    config.skills.prefer, config.rollout.num_retrieved = prefer, k
    config.eval.conditions = ("none",)
    tasks = [dataclasses.replace(t, group=g) for t, g in zip(_pool(4), groups, strict=True)]
    if not message:
        check_tasks(config, tasks)
        assert all(len(Retriever(tasks, prefer=prefer).retrieve(t, k)) == k for t in tasks)
        return
    with pytest.raises(ConfigError, match=message):
        check_tasks(config, tasks)


def test_shares_of_what_is_alike_are_of_those_that_say_it():
    mug, pan = ({"object": name} for name in ("mug", "pan"))
    a = dataclasses.replace(_task("a", "x"), group="1", meta=mug)
    pairs = [
        (a, dataclasses.replace(a, id="b")),
        (a, dataclasses.replace(a, id="c", group="2", meta=pan)),
        (a, dataclasses.replace(a, id="d", group="", meta={}, task_type="other")),
    ]
    expected = {"same_type": 2 / 3, "same_subject": 1 / 2, "same_group": 1 / 2}
    assert retrieved_shares(pairs) == pytest.approx(expected)
    assert retrieved_shares(pairs[2:]) == {"same_type": 0.0} and retrieved_shares([]) == {}
