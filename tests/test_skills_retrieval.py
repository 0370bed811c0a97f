"""Retrieval: a conformance table of embedders against brute force, exclusions and errors.

The row of the library sentence-transformers runs where it is installed; that of the embedding model
in JAX is in the table too, and its vectors are compared with stored ones in
test_models_embedding.py.
"""

import dataclasses
import random
from collections import Counter

import numpy as np
import pytest
from embedders import EMBEDDERS, EXACT, CountEmbedder, _pool, _task, _vectors, _worded_alike

from evolving_rl_jax.config import ConfigError, default_config
from evolving_rl_jax.data.tasks import TaskOrder
from evolving_rl_jax.run.skills import check_tasks
from evolving_rl_jax.skills import (
    Retriever,
    SkillRecord,
    SkillRetriever,
)
from evolving_rl_jax.skills.retrieval import shortage
from evolving_rl_jax.skills.rotation import Lots, Rotation
from evolving_rl_jax.types import Task


@pytest.mark.parametrize("name", EMBEDDERS)
def test_equals_brute_force(name):
    pool = _pool()
    random.Random(5).shuffle(pool)
    retriever = Retriever(pool, EMBEDDERS[name]())
    embedder = EMBEDDERS[name]().fit([task.text for task in pool])
    vectors = _vectors(embedder.embed, pool)
    queries = _vectors(getattr(embedder, "embed_queries", embedder.embed), pool[:25])

    def cosine(a, b):
        return queries[a] @ vectors[b] / np.linalg.norm(queries[a]) / np.linalg.norm(vectors[b])

    for source in pool[:25]:
        others = [task for task in pool if task.id != source.id]
        ranked = sorted(others, key=lambda t: (-round(cosine(source.id, t.id), 9), t.id))
        found = retriever.retrieve(source, 12)
        scores = [score for _, score in retriever.retrieve_scored(source, 12)]
        expected = [cosine(source.id, task.id) for task in ranked[:12]]
        assert scores == pytest.approx(expected, abs=1e-8 if name in EXACT else 1e-5)
        if name in EXACT:
            assert [task.id for task in found] == [task.id for task in ranked[:12]]
        else:  # equal to rounding: what changes places must score alike
            for task, score in zip(found, expected, strict=True):
                assert cosine(source.id, task.id) == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize("name", EMBEDDERS)
def test_order_of_the_pool_does_not_matter(name):
    pool = _pool(60)
    expected = [Retriever(pool, EMBEDDERS[name]()).retrieve(task, 5) for task in pool]
    retriever = Retriever(pool[::-1], EMBEDDERS[name]())
    assert [retriever.retrieve(task, 5) for task in pool] == expected
    assert [retriever.retrieve(task, 5) for task in pool] == expected  # from the cache


def test_source_and_planted_copy_are_excluded():
    source = _task("a-source", "put a hot mug on the shelf in maple", "same")
    copy = _task("z-copy", source.text, "same")
    twin = _task("m-twin", source.text, "other")  # same words, another game: allowed
    pool = [source, copy, twin, *_pool(10)]
    found = Retriever(pool).retrieve(source, 11)
    assert [task.id for task in found][0] == "m-twin"
    assert not {"a-source", "z-copy"} & {task.id for task in found}
    renamed = _task("not-in-pool", source.text, "same")  # a test task that hides in the pool
    assert not {"a-source", "z-copy"} & {t.id for t in Retriever(pool).retrieve(renamed, 11)}


def test_further_exclusions():
    pool = _pool(10)
    retriever = Retriever(pool)
    found = retriever.retrieve(
        pool[0], 7, exclude_ids={"t0001", "unknown"}, exclude_hashes={"hash of t0002"}
    )
    assert {task.id for task in found} == {f"t{i:04d}" for i in range(3, 10)}


def test_household_and_object_come_first():
    texts = [
        f"put a {o} on the {t} in {h}"
        for h in ("maple", "oak")
        for o in ("mug", "pan", "egg")
        for t in ("shelf", "desk")
    ]
    pool = [_task(f"{i}", text) for i, text in enumerate(texts)]
    query = _task("q", "heat a pan and put it on the sofa in oak")
    assert {task.text for task in Retriever(pool).retrieve(query, 2)} == {
        "put a pan on the shelf in oak",
        "put a pan on the desk in oak",
    }


def test_unknown_words_fall_back_to_ids():
    retriever = Retriever(_pool(5))
    found = retriever.retrieve_scored(_task("q", "zzz"), 2)
    assert [(task.id, score) for task, score in found] == [("t0000", 0.0), ("t0001", 0.0)]


@pytest.mark.parametrize("k", [10, 11, 0, -1])
def test_impossible_k_names_both_numbers(k):
    retriever = Retriever(_pool(10))
    with pytest.raises(ValueError, match=r"K must be at (most 9|least 1).* got " + str(k)):
        retriever.retrieve(_pool(10)[3], k)


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ([], "at least one task"),
        ([_task("a", "x"), _task("a", "y")], "unique, got 'a' twice"),
        ([Task("a", "alfworld", "train", "t", "x", "/g", "")], "content_hash of task 'a'"),
        ([_task("a", "..."), _task("b", "")], "got 2 texts without any"),
    ],
)
def test_bad_pools_are_refused(pool, message):
    with pytest.raises(ValueError, match=message):
        Retriever(pool)


def test_embeddings_must_be_finite():
    class Broken(CountEmbedder):
        def embed(self, texts):
            return super().embed(texts) * np.nan

    with pytest.raises(ValueError, match="embeddings must be finite"):
        Retriever(_pool(3), Broken())


def test_ten_thousand_tasks():
    pool = _pool(10_000, seed=4)
    retriever = Retriever(pool)
    assert len(retriever) == 10_000
    for source in pool[:20]:
        found = retriever.retrieve(source, 8)
        assert len({task.id for task in found} - {source.id}) == 8


# -- ties ------------------------------------------------------------------------------------------


def _rotation(pool, k=4, seed=3):
    retriever, order = Retriever(pool), TaskOrder(pool, seed)
    return Rotation(
        lambda task, lots: retriever.retrieve(task, k, lots=lots),
        lambda position: order.take(position, 1)[0],
        epoch=len(pool),
        seed=seed,
    ), order


def test_every_task_has_its_turn_in_an_epoch():
    pool = _worded_alike()
    rotation, order = _rotation(pool)
    plain = Retriever(pool)
    for epoch in range(3):
        first = epoch * len(pool)
        found = [rotation.at(first + i) for i in range(len(pool))]
        plays = Counter(task.id for tasks in found for task in tasks)
        assert len(plays) >= 0.95 * len(pool)
        for text in {task.text for task in pool}:  # of one sentence all are taken alike
            alike = [plays[task.id] for task in pool if task.text == text]
            assert max(alike) - min(alike) <= 2 or len(alike) <= 5
        for i, tasks in enumerate(found):
            source = order.take(first + i, 1)[0]
            best = plain.retrieve_scored(source, 4)
            assert source not in tasks and len({task.id for task in tasks}) == 4
            scores = dict((t.id, s) for t, s in plain.retrieve_scored(source, len(pool) - 1))
            assert [scores[t.id] for t in tasks] == [s for _, s in best]  # none less similar
    by_id = Counter(t.id for s in order.take(0, len(pool)) for t in plain.retrieve(s, 4))
    assert len(by_id) < 0.6 * len(pool)  # what ties by id left of it


def test_ties_are_drawn_the_same_after_a_resume_and_on_any_number_of_hosts():
    pool = _worded_alike()
    whole, _ = _rotation(pool)
    num, size = 7, len(pool)  # sources an iteration: some lie in two epochs
    positions = range(3 * size // num * num)
    expected = [[t.id for t in whole.at(i)] for i in positions]
    for hosts in (2, 3):
        parts = [_rotation(pool[::-1])[0] for _ in range(hosts)]
        for i in positions:
            assert [t.id for t in parts[i % num % hosts].at(i)] == expected[i]
    resumed, _ = _rotation(pool)
    for i in (2 * size + 5, 40, 41, size - 1, size, 0):  # later, and back again
        assert [t.id for t in resumed.at(i)] == expected[i]
    other, _ = _rotation(pool, seed=4)
    assert [[t.id for t in other.at(i)] for i in range(50)] != expected[:50]
    epochs = [expected[:size], expected[size : 2 * size]]
    assert epochs[0] != epochs[1]


def test_without_ties_nothing_is_drawn():
    pool = [_task(f"t{i}", f"put a {'mug ' * i}on the shelf") for i in range(1, 12)]
    retriever, lots = Retriever(pool), Lots(0)
    for task in pool:
        assert retriever.retrieve(task, 3, lots=lots) == retriever.retrieve(task, 3)


# -- the same for every embedder -------------------------------------------------------------------


def test_identical_texts_can_be_excluded():
    pool = [_task("a", "put a mug on the shelf"), _task("b", "put a mug on the desk")]
    query = _task("q", "put a mug on the shelf")
    assert Retriever(pool).retrieve(query, 1)[0].id == "a"
    assert Retriever(pool, exclude_identical_text=True).retrieve(query, 1)[0].id == "b"
    with pytest.raises(ValueError, match="K must be at most 1"):
        Retriever(pool, exclude_identical_text=True).retrieve(query, 2)


def test_too_few_tasks_of_another_text_are_found_before_a_run():
    pool = [_task(f"a{i}", "put a mug on the shelf") for i in range(3)]
    pool += [_task("b", "put a mug on the desk"), _task("copy", "cool a pan", "hash of b")]
    for k, identical in ((2, False), (2, True), (3, True), (4, False)):
        retriever = Retriever(pool, exclude_identical_text=identical)
        failed = []
        for task in pool:
            try:
                retriever.retrieve(task, k)
            except ValueError as error:
                failed.append(str(error))
        why = shortage(pool, pool, k, same_text=identical)
        assert why == (failed[0] if failed else "")
    assert "most 2, the tasks that a pool of 5 allows for 'a0', got 3" in shortage(pool, pool, 3)
    assert shortage(pool, [_task("q", "cool a pan")], 1, others=pool[:4]).startswith(
        "K must be at most 0"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"skills.audit_leakage": True},
            "audit_leakage must be False with training tasks of which",
        ),
        ({"skills.exclude_identical_text": True}, "exclude_identical_text: K must be at most 2,"),
        ({"skills.exclude_identical_text": True, "algorithm.arm": "grpo"}, ""),
        ({"skills.exclude_identical_text": True, "rollout.num_retrieved": 2}, ""),
        ({}, ""),
    ],
)
def test_a_run_says_at_its_start_what_its_tasks_do_not_allow(changes, message):
    config = default_config()
    with config.unlocked():
        config.rollout.num_retrieved = 3
        config.update_from_flattened_dict(changes)
    tasks = [_task(f"a{i}", "put a mug on the shelf") for i in range(3)]
    tasks += [_task(f"b{i}", "put a mug on the desk") for i in range(2)]
    if not message:
        check_tasks(config, tasks)
        return
    with pytest.raises(ConfigError, match=message):
        check_tasks(config, tasks)
    told = dataclasses.replace(tasks[0], meta={"answers": ["Oslo"]})
    if "skills.audit_leakage" in changes:
        check_tasks(config, [told, *tasks])


def test_a_panel_without_a_source_of_another_text_is_found_before_a_run():
    config = default_config()
    config.skills.exclude_identical_text = True
    config.eval.splits, config.eval.conditions = ("valid_seen",), ("none", "own")
    config.rollout.num_retrieved = 1
    train = [_task("a", "put a mug on the shelf"), _task("b", "put a mug on the desk")]
    game = dataclasses.replace(_task("c", "put a mug on the shelf"), split="valid_seen")
    check_tasks(config, train, [*train, game])
    alike = dataclasses.replace(train[1], content_hash=game.content_hash)
    with pytest.raises(
        ConfigError, match="'own' with config.skills.exclude_identical_text: K must"
    ):
        check_tasks(config, [train[0], alike], [train[0], alike, game])
    config.eval.conditions = ("none",)
    check_tasks(config, [train[0], alike], [train[0], alike, game])


def _skill(name, text, source="s", **changes):
    skill = {"name": name, "description": f"about {name}"}
    values = {"source_task_hash": f"hash of {source}", "source_text": text, "skill": skill}
    return SkillRecord(name, 0, source, **{**values, **changes})


def test_skills_are_found_by_what_their_sources_are_about():
    retriever = SkillRetriever()
    assert len(retriever) == 0 and retriever.retrieve(_task("q", "find mug at elm")) == []
    records = [
        _skill("a", "find mug at elm"),
        _skill("b", "find egg at oak"),
        _skill("c", "find mug at elm", reward=0.9),
        _skill("d", "find mug at elm", retired="duplicate"),
        _skill("e", "find mug at elm", audit={"passed": False}),
        _skill("f", "find mug at elm", source="q"),
        _skill("g", "find mug at elm", source="copy", source_task_hash="hash of q"),
    ]
    assert retriever.add(records) == 5
    query = _task("q", "put mug at elm")
    assert [r.id for r, _ in retriever.retrieve(query, 9)] == ["c", "a", "b"]
    assert [r.id for r, _ in retriever.retrieve(query)] == ["c"]
    assert retriever.retrieve(query, 9, exclude_hashes={"hash of s"}) == []
    assert retriever.retrieve(_task("x", "zzz"), 9) == []  # nothing in common


def test_a_skill_below_the_least_similarity_is_not_used():
    strict = SkillRetriever(min_similarity=0.5, exclude_identical_text=True)
    strict.add([_skill("a", "find mug at elm"), _skill("b", "cool the pan now at elm")])
    assert [r.id for r, _ in strict.retrieve(_task("q", "find mug at oak"), 9)] == ["a"]
    assert strict.retrieve(_task("q", "find mug at elm"), 9) == []


def test_a_skill_of_unknown_origin_is_found_by_its_own_words():
    retriever = SkillRetriever()
    retriever.add([_skill("mugs", ""), _skill("eggs", "")])
    assert [r.id for r, _ in retriever.retrieve(_task("q", "where are eggs"))] == ["eggs"]
