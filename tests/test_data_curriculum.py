"""The curriculum's values and draws, by plain arithmetic; and sources without spread played again."""

import itertools
import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from doubles import make_task

from evolving_rl_jax import losses
from evolving_rl_jax.config import ConfigError, default_config, validate
from evolving_rl_jax.data.curriculum import Curriculum
from evolving_rl_jax.data.tasks import TaskOrder
from evolving_rl_jax.rollout.evolve import Experience, Source
from evolving_rl_jax.rollout.groups import normalized
from evolving_rl_jax.train.collect import Stages
from evolving_rl_jax.train.memory import taught
from evolving_rl_jax.types import Episode, Turn


def tasks_of(**counts):
    return [make_task(f"{kind}{i}", task_type=kind) for kind, n in counts.items() for i in range(n)]


def make(tasks=None, **changes):
    settings = {"by": "task_type", "rate": 0.5, "temperature": 0.4, "seed": 3, **changes}
    return Curriculum(tasks or tasks_of(easy=3, hard=5, odd=2), **settings)


def test_values_are_moving_averages_and_shares_their_softmax():
    curriculum = make()
    easy, hard, _ = (task for task in tasks_of(easy=1, hard=1, odd=1))
    curriculum.learn(0, 4, [(easy, 0.2), (hard, 1.0), (hard, 0.6)])
    curriculum.learn(1, 4, [(hard, 0.4)])
    values = {"easy": 0.1, "hard": 0.5 * 0.4 + 0.5 * 0.4, "odd": 0.0}
    assert curriculum.values == pytest.approx(values)
    weights = {kind: np.exp(q / 0.4) for kind, q in values.items()}
    want = {kind: w / sum(weights.values()) for kind, w in weights.items()}
    assert curriculum.shares() == pytest.approx(want)
    figures = curriculum.figures()
    assert figures["curriculum/value"] == pytest.approx(np.mean(list(values.values())))
    assert figures["curriculum/largest_share"] == pytest.approx(max(want.values()))
    entropy = -sum(p * np.log(p) for p in want.values())
    assert figures["curriculum/entropy"] == pytest.approx(entropy)


def test_kinds_are_drawn_by_their_shares():
    curriculum = make()
    curriculum.values = {"easy": 0.0, "hard": 0.8, "odd": 0.2}
    drawn = Counter(t.task_type for i in range(300) for t in curriculum.draw(i, 10))
    for kind, share in curriculum.shares().items():
        assert drawn[kind] / 3000 == pytest.approx(share, abs=0.03)


def test_no_task_of_a_kind_is_left_out_or_taken_twice_in_its_epoch():
    curriculum = make()
    taken = Counter()
    for iteration in range(12):
        drawn = curriculum.draw(iteration, 5)
        assert drawn == curriculum.draw(iteration, 5)  # asking again changes nothing
        taken.update(task.id for task in drawn)
        curriculum.learn(iteration, 5, [])
    for kind in ("easy", "hard", "odd"):
        counts = [n for name, n in taken.items() if name.startswith(kind)]
        assert max(counts) - min(counts) <= 1


def test_a_run_goes_on_with_the_same_draws():
    one, other = make(), make()
    for iteration in range(3):
        task = one.draw(iteration, 4)[0]
        one.learn(iteration, 4, [(task, 0.7)])
    other.restore(json.loads(json.dumps(one.state())))
    assert other.draw(3, 6) == one.draw(3, 6) and other.values == one.values
    other.restore(None)
    assert other.draw(0, 6) == make().draw(0, 6)


def group(wins, retrieved=("r0", "r1")):
    """An experience of one source for each table of wins [K, N]; 2 = it was not scored."""
    wins = np.array(wins, np.float32)[..., None]
    tasks = [make_task(f"s{g}", task_type=f"kind{g}") for g in range(len(wins))]
    others = [make_task(name, task_type=name) for name in retrieved]
    mask = (wins < 2).astype(np.float32)
    sources = [Source(task, retrieved=others) for task in tasks]
    return Experience(sources, wins * mask, mask, np.ones((len(wins), wins.shape[2])))


def test_what_a_source_taught_is_the_mean_size_of_its_advantages():
    experience = group([[[1, 0, 0, 0], [1, 1, 1, 1]], [[2, 2, 2, 2], [1, 0, 1, 2]], [[2] * 4] * 2])
    # z of (1,0,0,0): 1.732, -0.577 x 3; of (1,0,1): 0.707, -1.414, 0.707
    sizes = np.array([1.7320508, 0.5773503, 0.5773503, 0.5773503])
    found = taught(experience, each_task=False)
    want = {"kind0": sizes.sum() / 8, "kind1": (0.7071068 * 2 + 1.4142136) / 3}
    assert {task.task_type: value for task, value in found} == pytest.approx(want, rel=1e-4)
    each = [(task.task_type, value) for task, value in taught(experience, each_task=True)]
    assert [name for name, _ in each] == ["r0", "r1", "r1"]
    assert each[0][1] == pytest.approx(sizes.mean(), rel=1e-4) and each[1][1] == 0


@pytest.mark.parametrize("scale", ["std", "none", "leave_one_out"])
def test_advantages_on_the_host_are_those_of_the_update(scale):
    rng = np.random.default_rng(0)
    rewards = (rng.random((4, 2, 5)) < 0.5).astype(np.float32) * rng.choice([1, 0.3], (4, 1, 1))
    mask = (rng.random(rewards.shape) < 0.8).astype(np.float32)
    rewards[0, 0], mask[1, 1] = 0.3, 0.0
    want = losses.group_normalize(rewards, mask, axis=2, scale=scale)
    np.testing.assert_allclose(normalized(rewards, mask, (2,), scale), want, rtol=1e-4, atol=1e-6)


class Table:
    """An evolver whose plays are given: (source number) -> table of wins."""

    def __init__(self, wins):
        self.wins, self.asked = wins, []

    def stop(self):
        return ""

    def collect(self, tasks, numbers, retrieved):
        self.asked.append(([t.id for t in tasks], list(numbers), retrieved is None))
        return group([self.wins.get(n, [[1, 0], [0, 0]]) for n in numbers])


def stages(rounds, monkeypatch, wins):
    config = default_config()
    config.rollout.update(num_sources=4, num_retrieved=2, num_skills=2, refill_rounds=rounds)
    tasks = [make_task(f"t{i}") for i in range(30)]
    parts = SimpleNamespace(
        config=config, train_tasks=tasks, order=TaskOrder(tasks, 0), prompts=None, tokenizer=None,
        folder=None, preemption=SimpleNamespace(reason=""),
    )  # fmt: skip
    retriever = SimpleNamespace(retrieve=lambda task, k, lots=None: tasks[:k])
    table, name = Table(wins), "evolving_rl_jax.train.collect."
    monkeypatch.setattr(name + "make_retriever", lambda *_: retriever)
    monkeypatch.setattr(name + "Evolver", lambda *_, **__: table)
    memory = SimpleNamespace(curriculum=None, refilled={}, beside=lambda: None)
    return Stages(parts, range(4), memory), memory, table


def test_sources_without_spread_are_replaced_within_the_bound(monkeypatch):
    flat = [[1, 1], [0, 0]]
    wins = {1: flat, 3: flat, 5: flat, 7: [[0, 1], [0, 0]], 9: flat}
    some, memory, table = stages(2, monkeypatch, wins)
    experience = some.collect(None, 0, lambda: "")
    assert [numbers for _, numbers, _ in table.asked] == [[0, 1, 2, 3], [5, 7], [9]]
    assert memory.refilled == {0: 3}
    asked = [name for names, _, _ in table.asked for name in names]
    assert experience.wins[3, 0, :, 0].tolist() == [0, 1]  # the one that took the place
    assert experience.wins[1, 0, :, 0].tolist() == [1, 1]  # the bound is reached
    assert len(asked) == 7 and table.asked[1][2] and not table.asked[0][2]
    some, memory, table = stages(0, monkeypatch, wins)
    some.collect(None, 0, lambda: "")
    assert len(table.asked) == 1 and memory.refilled == {0: 0}


def test_a_source_whose_extractions_alone_differ_is_kept(monkeypatch):
    """Every valid skill won everything, and one could not be read: that is a signal."""
    some, memory, table = stages(1, monkeypatch, {})

    def collect(tasks, numbers, retrieved):
        table.asked.append(numbers)
        found = group([[[1, 2], [1, 2]]] * len(numbers))
        found.skill_valid[:] = [1, 0]
        return found

    table.collect = collect
    some.collect(None, 0, lambda: "")
    assert table.asked == [[0, 1, 2, 3]] and memory.refilled == {0: 0}
    some._parts.config.algorithm.arm = "solver_only"  # which learns nothing from that
    some.collect(None, 1, lambda: "")
    assert memory.refilled == {0: 0, 1: 4}


def test_a_curriculum_needs_the_newest_iteration():
    config = default_config()
    config.curriculum.kind = "bandit"
    config.rollout.overlap = 1
    config.algorithm.importance.kind = "truncated"
    with pytest.raises(ConfigError, match="rollout.overlap must be 0 with curriculum.kind"):
        validate(config)


def test_a_source_whose_steps_alone_teach_is_kept(monkeypatch):
    """All won, one in fewer turns from the same page: step credit tells them apart."""
    some, memory, table = stages(1, monkeypatch, {})
    some._parts.config.algorithm.step_credit.weight = 1.0

    def collect(tasks, numbers, retrieved):
        table.asked.append(numbers)
        found = group([[[1, 1], [1, 1]]] * len(numbers))
        for source in found.sources:
            for k, n in itertools.product(range(2), range(2)):
                turns = [Turn(f"page {i}", "", "go", True) for i in range(2 + 2 * n)]
                source.episodes[k, n, 0] = Episode(tasks[0], turns, True, "ok", [], reward=1.0)
        return found

    table.collect = collect
    some.collect(None, 0, lambda: "")
    assert table.asked == [[0, 1, 2, 3]] and memory.refilled == {0: 0}
