"""Step rewards of web tasks in the batch and in the compiled step, against the golden numbers."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from doubles import FakeEngine, FakePool, compact_prompts, make_task
from ml_collections import ConfigDict
from small_updates import MODEL, new_state, small_config

from evolving_rl_jax import losses, models
from evolving_rl_jax.config import default_config
from evolving_rl_jax.record.episodes import episode_records, sequence_advantages
from evolving_rl_jax.record.figures import bank_records, rollout_figures
from evolving_rl_jax.rollout.batch import BatchShape, make_batch, split_experience
from evolving_rl_jax.rollout.episode import Driver, PlaySettings
from evolving_rl_jax.rollout.evolve import (
    Candidate,
    Evolver,
    Experience,
    Source,
    StepScoring,
    add_steps,
)
from evolving_rl_jax.types import (
    OK,
    ROLE_EXTRACTOR,
    ROLE_NONE,
    TIMEOUT,
    TRUNCATED,
    Episode,
    Sample,
    StepResult,
    Turn,
)
from evolving_rl_jax.update import step as step_lib
from evolving_rl_jax.update.advantages import unweighted_advantages

GOLDEN = json.loads(
    (pathlib.Path(__file__).parent / "golden" / "rewards_web.json").read_text(encoding="utf-8")
)
# Of all golden cases, so that they share a compiled function.
K, N, S, LENGTH = 5, 8, 12, 4
SHAPE = BatchShape(1, K, N, 1, LENGTH, 1, S)


def sample(seed=0, step=0):
    tokens = np.random.default_rng(seed).integers(0, 40, LENGTH).astype(np.int32)
    mask = np.array([0, 0, 1, 1], np.float32)
    zeros = np.zeros(LENGTH, np.float32)
    return Sample(tokens, mask, zeros, zeros, step)


def episode(rewards, *, steps=0, status=OK, seed=0):
    """An episode of a task of ``steps`` steps (default: it was won)."""
    steps = steps or len(rewards)
    won = len(rewards) == steps and all(r > 0 for r in rewards)
    turns = [Turn(f"o{s}", "x", "x", True) for s in range(len(rewards))]
    samples = [sample(100 * seed + s, s) for s in range(len(rewards))]
    infos = [{"correct": r > 0} for r in rewards]
    return Episode(
        make_task("t", step_limit=steps), turns, won, status, samples,
        rewards=list(rewards), infos=infos,
    )  # fmt: skip


def experience_of(num_skills, episodes, valid=None, score="correct_steps", shape=(K, N, 1), s=S):
    """One source, its skills, and ``episodes`` {(k, n, r): episode}, in arrays of ``shape``."""
    candidates = [Candidate("", sample(n), None, "", True) for n in range(num_skills)]
    source = Source(make_task("s"), episode([1.0]), candidates, episodes=episodes)
    mask, ok = np.zeros((1, *shape), np.float32), np.ones((1, shape[1]), np.float32)
    for at, e in episodes.items():
        mask[0][at] = float(e.scored)
    ok[0, :num_skills] = 1.0 if valid is None else valid
    result = Experience([source], np.zeros_like(mask), mask, ok)
    add_steps(result, StepScoring(s, score))
    return result


def web_config(**algorithm):
    fields = {"extractor_score": "correct_steps", "step_pool": "task"}
    return small_config(**(fields | algorithm))


@jax.jit
def pooled_over_tasks(batch):
    config = web_config(step_pool="all", extractor_weight=1.0)
    return step_lib.sequence_advantages(config, batch)


# A failure of the infrastructure is a failed first step there and left out here.
PLAYED = [c for c in GOLDEN["cases"] if all(e["kind"] == "normal" for e in c["episodes"])]


@pytest.mark.parametrize("case", [pytest.param(c, id=c["id"]) for c in PLAYED])
def test_golden_rewards_through_the_batch_and_the_compiled_step(case):
    num_skills, played = case["num_skills"], {}
    for i, e in enumerate(case["episodes"]):
        assert i == e["task"] * num_skills + e["skill"]
        rewards = [s["reward"] for s in e["steps"]]
        assert [r > 0 for r in rewards] == [s["action_correct"] for s in e["steps"]]
        played[e["task"], e["skill"], 0] = episode(rewards, steps=S)
    valid = [
        (f is None or f > 0) and a != "fail"
        for f, a in zip(case["format_score"], case["audit"], strict=True)
    ]
    batch = make_batch(experience_of(num_skills, played, valid), SHAPE)
    advantages, metrics = jax.device_get(pooled_over_tasks(batch))
    want = case["expected"]
    used = batch.role == ROLE_EXTRACTOR
    extractor = np.array(want["extractor_advantage"]) / case["extractor_reward_weight"]
    extractor = np.zeros(1) if num_skills == 1 else extractor  # a group of one tells nothing
    np.testing.assert_allclose(advantages[used], extractor, atol=2e-5)
    mean = np.sum(want["extractor_raw_reward"]) / N
    np.testing.assert_allclose(metrics["extractor_reward"], mean, atol=1e-5)
    found = {
        (int(i), int(s)): a
        for i, s, a, r in zip(batch.index, batch.step, advantages, batch.role, strict=True)
        if r == step_lib.ROLE_SOLVER
    }
    expected = {}
    for i, e in enumerate(want["episodes"]):
        k, n = divmod(i, num_skills)
        expected |= {(k * N + n, s["step_index"]): s["advantage"] for s in e["steps"]}
    assert found.keys() == expected.keys() and len(found) > 0
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, atol=1e-5, err_msg=str(key))


# -- by hand ---------------------------------------------------------------------------------------

# One task, four skills: two fail at once, two get on; of these one fails its second step.
BY_HAND = {
    (0, 0, 0): episode([0.0], steps=2, seed=1),
    (0, 1, 0): episode([0.0], steps=2, seed=2),
    (0, 2, 0): episode([1.0, 0.0], steps=2, seed=3),
    (0, 3, 0): episode([1.0, 1.0], steps=2, seed=4),
}
SMALL = BatchShape(1, 1, 4, 1, LENGTH, 8, 2)


def small_experience(**changes):
    return experience_of(4, {**BY_HAND}, shape=(1, 4, 1), s=2, **changes)


def by_sequence(batch, values, role):
    rows = zip(batch.index, batch.step, values, batch.role, strict=True)
    return {(int(i), int(s)): round(float(a), 4) for i, s, a, r in rows if r == role}


def test_steps_are_compared_within_their_task_and_index():
    batch = make_batch(small_experience(), SMALL)
    advantages, metrics = step_lib.sequence_advantages(web_config(extractor_weight=1.0), batch)
    assert by_sequence(batch, advantages, step_lib.ROLE_SOLVER) == {
        (0, 0): -1.0, (1, 0): -1.0, (2, 0): 1.0, (3, 0): 1.0, (2, 1): -1.0, (3, 1): 1.0,
    }  # fmt: skip
    # Correct steps 0, 0, 1, 2: mean 0.75, population variance 11 / 16.
    expected = (np.array([0, 0, 1, 2]) - 0.75) / np.sqrt(11 / 16)
    np.testing.assert_allclose(advantages[batch.role == ROLE_EXTRACTOR], expected, atol=1e-4)
    assert metrics["extractor_reward"] == pytest.approx(0.75)
    assert metrics["reward"] == pytest.approx(0.25)
    assert metrics["zero_variance_solver"] == 0.0


def test_share_of_steps_and_arms():
    halves = small_experience(score="share_of_steps")
    np.testing.assert_allclose(halves.scores[0, 0, :, 0], [0, 0, 0.5, 1])
    np.testing.assert_array_equal(halves.wins[0, 0, :, 0], [0, 0, 0, 1])
    batch = make_batch(halves, SMALL)
    for arm, solver, extractor in (
        ("joint", True, True), ("solver_only", True, False),
        ("extractor_only", False, True), ("grpo", True, False),
    ):  # fmt: skip
        advantages, _ = step_lib.sequence_advantages(web_config(arm=arm), batch)
        advantages = np.asarray(advantages)
        assert advantages[batch.role == step_lib.ROLE_SOLVER].any() == solver
        assert advantages[batch.role == ROLE_EXTRACTOR].any() == extractor


def test_failed_environments_and_cut_off_turns():
    lost = dataclasses.replace(episode([1.0]), status=TIMEOUT)
    cut = episode([1.0], steps=2)
    cut.turns.append(Turn("o1", "", "", False))  # nothing answered it
    cut.samples.append(sample(1, 1))
    found = experience_of(2, {(0, 0, 0): lost, (0, 1, 0): cut}, shape=(1, 4, 1), s=2)
    np.testing.assert_array_equal(found.step_mask[0, 0, :2, 0], [[0, 0], [1, 1]])
    np.testing.assert_array_equal(found.step_rewards[0, 0, 1, 0], [1, 0])
    assert found.scores[0, 0, :2, 0].tolist() == [0.0, 1.0]
    (half,) = split_experience(found, 1)
    assert half.arrays().keys() == found.arrays().keys()


class Pages(FakePool):
    """Every action is right; the second page of one episode is larger than any context."""

    def __init__(self, long):
        super().__init__()
        self.long = long

    def step(self, key, action):
        self.actions[key].append(action)
        page = "x" * 5000 if key == self.long else "a page"
        done = len(self.actions[key]) == 2
        self._answer(key, StepResult(page, ("win",), float(action == "win"), done, done))


@pytest.mark.parametrize("protocol", ["stop_at_error", "teacher_forced"])
def test_a_page_that_was_never_read_is_in_no_group(protocol):
    """Whoever saw the second page was right, so it says nothing of anyone."""
    prompts = compact_prompts()
    settings = PlaySettings(
        max_turn_tokens=20, max_skill_tokens=9, max_steps=2, temperature=1.0, top_p=1.0, top_k=0,
        context="recent", recent_turns=0,
    )  # fmt: skip
    engine = FakeEngine(prompts.tokenizer, lambda *_: "mug> win", max_length=500)
    driver = Driver(engine, Pages(2_000_001), prompts, settings, iteration=0)
    rollout = ConfigDict(dict(
        num_retrieved=1, num_skills=3, num_repeats=1, num_source_episodes=1, train_sources=False, evaluate_invalid_skills=False,
        max_skill_chars=99,
    ))  # fmt: skip
    evolver = Evolver(driver, None, prompts, rollout, scoring=StepScoring(2, "correct_steps"))
    task = make_task("t", env="mind2web", meta={"protocol": protocol})
    found = evolver.collect_groups([task])
    np.testing.assert_array_equal(found.step_mask[0, 0, :, 0], [[1, 1], [1, 0], [1, 1]])
    algorithm = default_config().algorithm
    algorithm.arm = "grpo"
    solver = np.asarray(unweighted_advantages(algorithm, found).solver)[0, 0, :, 0]
    np.testing.assert_array_equal(solver, np.zeros((3, 2)))  # 0.71 and -1.41 were it a wrong step
    short = found.sources[0].episodes[0, 1, 0]
    assert len(short.samples) == 1
    ended = (TRUNCATED, 1) if protocol == "stop_at_error" else (OK, 2)  # a failed step, played on
    assert (short.status, len(short.turns)) == ended


def test_policy_loss_of_the_compiled_update():
    """With the policy's own log-probabilities the ratio is 1 and the surrogate is minus A."""
    config = web_config(kl_coef={"solver": 0.0, "extractor": 0.0})
    experience = small_experience()
    train_step, state = new_state(config)

    @jax.jit
    def logprobs(tokens):
        hidden, _ = models.apply(state.params, MODEL, tokens[None])
        logits = jax.nn.log_softmax(models.logits(state.params, MODEL, hidden)[0, :-1])
        return jnp.pad(logits[jnp.arange(LENGTH - 1), tokens[1:]], (1, 0))

    source = experience.sources[0]
    for s in [c.sample for c in source.candidates] + [
        s for e in source.episodes.values() for s in e.samples
    ]:
        s.logprobs = np.asarray(logprobs(s.tokens)) * s.loss_mask
    batch = make_batch(experience, SMALL)
    advantages, _ = step_lib.sequence_advantages(config, batch)
    _, metrics = train_step(state, batch)
    used = batch.role != ROLE_NONE
    assert used.sum() == 4 + 6
    expected = -np.asarray(advantages)[used].mean()
    np.testing.assert_allclose(metrics["policy_loss"], expected, atol=1e-5)

    # Padding and the place of a sequence change nothing.
    wider = dataclasses.replace(SMALL, micro_batch_rows=16)
    train_step, state = new_state(config)
    _, again = train_step(state, make_batch(experience, wider))
    for name in metrics:
        np.testing.assert_allclose(again[name], metrics[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_batches_of_environments_without_step_scores_are_as_they_were():
    plain = small_experience()
    plain.wins[:] = plain.scores > 1
    without = Experience(plain.sources, plain.wins, plain.episode_mask, plain.skill_valid)
    batch = make_batch(without, SMALL)
    assert batch.scores is None and batch.step_rewards is None and batch.step_mask is None
    config = small_config()
    advantages, _ = step_lib.sequence_advantages(config, batch)
    expected = losses.skill_advantages(
        plain.wins, skill_valid=plain.skill_valid, episode_mask=plain.episode_mask,
        extractor_weight=1.0,
    )  # fmt: skip
    solver = np.asarray(expected.solver).reshape(-1)[batch.index]
    extractor = np.asarray(expected.extractor).reshape(-1)[batch.index % 4] * 0.4
    want = np.where(batch.role == ROLE_EXTRACTOR, extractor, solver)
    want = np.where(batch.role == ROLE_NONE, 0, want).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(advantages), want)


# -- what is written down --------------------------------------------------------------------------


def test_records_tell_the_rewards_of_the_update():
    config = default_config()
    config.env.name, config.rollout.max_steps = "mind2web", 2
    config.train.log_episodes = 1
    experience = small_experience()
    advantages = sequence_advantages(experience, config.algorithm)
    assert advantages.solver.shape == (1, 1, 4, 1, 2)

    class Decoder:
        def decode(self, ids):
            return "x" * len(ids)

    (record,) = episode_records(experience, 0, config, Decoder())
    assert [s["reward"] for s in record["skills"]] == [0.0, 0.0, 1.0, 2.0]
    last = record["skills"][3]["episodes"][0]
    assert [s["advantage"] for s in last["sequences"]] == [1.0, 1.0] and last["advantage"] == 1.0
    third = record["skills"][2]["episodes"][0]
    assert [s["advantage"] for s in third["sequences"]] == [1.0, -1.0]
    bank = bank_records(experience, 0, 0, StepScoring.from_config(config))
    assert [r.reward for r in bank] == [0.0, 0.0, 1.0, 2.0] and [r.wins for r in bank] == [
        0,
        0,
        0,
        1,
    ]
    figures = rollout_figures(experience)
    assert figures["rollout/action_accuracy"] == pytest.approx(3 / 6)
    assert figures["rollout/correct_steps"] == pytest.approx(3 / 4)
    assert figures["rollout/win_rate"] == pytest.approx(1 / 4)
