"""The loss functions against numbers computed by the method's released implementation.

Deliberate differences are asserted as differences: a lone member and a constant group give 0.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evolving_rl_jax import losses

GOLDEN = pathlib.Path(__file__).parent / "golden"
ALFWORLD = json.loads((GOLDEN / "rewards_alfworld.json").read_text())
WEB = json.loads((GOLDEN / "rewards_web.json").read_text())
POLICY = json.loads((GOLDEN / "policy_loss.json").read_text())


def by_id(cases):
    return [pytest.param(case, id=case["id"]) for case in cases]


SHAPE = (5, 8, 4)  # K, N, R and
STEPS = 12  # large enough for all cases, so that they share a compiled function

skill_advantages = jax.jit(losses.skill_advantages)
kl_estimate = jax.jit(losses.kl_estimate, static_argnames="kind")
step_advantages = jax.jit(losses.step_advantages, static_argnames="pool")


def padded(x, shape, fill=0.0):
    """``x`` in the corner of an array of ``shape``, with a leading axis of one source task."""
    x = np.asarray(x, np.float32)
    width = [(0, to - have) for have, to in zip(x.shape, shape, strict=True)]
    return np.pad(x, width, constant_values=fill)[None]


def run_skill_advantages(wins, case, **kwargs):
    """Padding skills count as valid but never played, which leaves them out of their group."""
    wins = np.asarray(wins)
    passed = zip(case["format_score"], case["audit"], strict=True)
    valid = [(f is None or f > 0) and a != "fail" for f, a in passed]
    got = skill_advantages(
        padded(wins, SHAPE, fill=np.nan),
        skill_valid=padded(valid, SHAPE[1:2], fill=1.0),
        episode_mask=padded(np.ones(wins.shape), SHAPE),
        extractor_weight=case["extractor_reward_weight"],
        solver_weight=case["solver_reward_weight"],
        **kwargs,
    )
    k, n, r = wins.shape
    assert np.count_nonzero(got.solver) == np.count_nonzero(got.solver[0, :k, :n, :r])
    return got.extractor[0, :n], got.solver[0, :k, :n, :r], got.extractor_reward[0, :n]


@pytest.mark.parametrize("case", by_id(ALFWORLD["cases"]))
def test_skill_advantages_alfworld(case):
    extractor, solver, reward = run_skill_advantages(case["win"], case)
    want = {name: np.array(value) for name, value in case["expected"].items()}
    if case["num_skills"] == 1:
        want["extractor_advantage"] *= 0.0
    if case["num_skills"] * case["num_repeats"] == 1:
        want["solver_advantage"] *= 0.0
    np.testing.assert_allclose(reward, want["extractor_raw_reward"], atol=1e-5)
    np.testing.assert_allclose(extractor, want["extractor_advantage"], atol=1e-5)
    np.testing.assert_allclose(solver, want["solver_advantage"], atol=1e-5)


@pytest.mark.parametrize("case", by_id(WEB["cases"]))
def test_skill_advantages_web(case):
    correct = np.array([sum(s["action_correct"] for s in e["steps"]) for e in case["episodes"]])
    wins = correct.reshape(case["num_tasks"], case["num_skills"], 1)
    extractor, _, reward = run_skill_advantages(wins, case, eps=1e-8)
    want = case["expected"]
    expected = [0.0] if case["num_skills"] == 1 else want["extractor_advantage"]
    np.testing.assert_allclose(reward, want["extractor_raw_reward"], atol=1e-5)
    np.testing.assert_allclose(extractor, expected, atol=1e-5)


def run_step_advantages(rewards, mask, tasks):
    """The episodes of ``rewards`` [K * N, S], task-major, in the fixed shape."""
    folded = (tasks, len(rewards) // tasks, 1, rewards.shape[1])
    full = (*SHAPE[:2], 1, STEPS)
    arrays = padded(rewards.reshape(folded), full, np.nan), padded(mask.reshape(folded), full)
    got = step_advantages(*arrays, pool="all")[0]
    return got[tuple(slice(size) for size in folded)].reshape(rewards.shape)


@pytest.mark.parametrize("case", by_id(WEB["cases"]))
def test_step_advantages_web(case):
    """An infrastructure failure is kept as a failed first step here, as the released code does."""
    expected = case["expected"]["episodes"]
    rewards, mask, want = np.zeros((3, len(expected), STEPS))
    for i, (episode, result) in enumerate(zip(case["episodes"], expected, strict=True)):
        for step in result["steps"]:
            s = step["step_index"]
            mask[i, s], want[i, s] = 1, step["advantage"]
            rewards[i, s] = 0 if step["placeholder"] else episode["steps"][s]["reward"]
    assert case["solver_reward_weight"] == 1.0
    got = run_step_advantages(rewards, mask, case["num_tasks"])
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("case", by_id(WEB["normalize_only"]))
def test_step_advantages_pooling(case):
    episodes = sorted({s["episode_id"] for s in case["samples"]})
    rewards, mask, want = np.zeros((3, len(episodes), STEPS))
    for sample, expected in zip(case["samples"], case["expected"], strict=True):
        at = episodes.index(sample["episode_id"]), sample.get("step_index", 0)
        # A lone step's value depends on success alone, and here success is a positive score.
        flagged = expected["group_size"] == 1 and sample.get("action_correct")
        rewards[at] = 1.0 if flagged else sample["reward"]
        mask[at], want[at] = 1, expected["value"]
    np.testing.assert_allclose(run_step_advantages(rewards, mask, 1), want, atol=1e-5)


def coefficients(samples, args):
    """Per-sample entropy and KL coefficients: the role's own, else the global one."""
    roles = {"extractor": "extractor", "solver": "solver", "downstream_solver": "solver"}

    def one(role, name):
        value = args.get(f"{roles[role]}_{name}")
        return args[name] if value is None else value

    names = ("entropy_coef", "kl_loss_coef")
    return tuple(jnp.array([one(s["role"], n) for s in samples], jnp.float32) for n in names)


ROW, SEQUENCES = 64, 8  # one shape for all cases, so that they share a compiled function


def packed(samples):
    """All samples in one row, then padding that holds nan; and the coefficients of each sample."""
    ids = sum(([m] * len(s["tokens"]) for m, s in enumerate(samples)), [])

    def row(values, dtype=np.float32, fill=np.nan):
        values = np.asarray(values, dtype)
        width = [(0, ROW - len(values))] + [(0, 0)] * (values.ndim - 1)
        return np.pad(values, width, constant_values=fill)[None]

    def join(key, **kwargs):
        return row(np.concatenate([np.asarray(s[key]) for s in samples]), **kwargs)

    return {
        "logits": join("logits", fill=0.0),
        "targets": join("tokens", dtype=np.int32, fill=0),
        "old": join("old_log_probs"),
        "ref": join("ref_log_probs"),
        "mask": join("loss_mask", fill=1.0),
        "sequence_ids": row(ids, dtype=np.int32, fill=-1),
    }


def per_sequence(samples, args):
    values = [jnp.array([s["reward"] for s in samples]), *coefficients(samples, args)]
    return [jnp.pad(x, (0, SEQUENCES - len(samples))) for x in values]


@functools.partial(jax.jit, static_argnames="kl_kind")
@functools.partial(jax.value_and_grad, has_aux=True)
def loss_of_logits(logits, batch, sequences, temperature, clip_low, clip_high, kl_kind):
    """The objective as a function of logits, through token_logprobs in several chunks."""
    advantages, entropy_coef, kl_coef = sequences
    logprobs, entropy = losses.token_logprobs(
        logits,
        jnp.eye(logits.shape[-1]),
        batch["targets"],
        temperature=temperature,
        chunk_size=20,
    )
    loss_sum, metrics = losses.evolving_rl_loss(
        logprobs,
        batch["old"],
        batch["ref"],
        entropy,
        batch["mask"],
        sequence_ids=batch["sequence_ids"],
        num_sequences=SEQUENCES,
        advantages=advantages,
        entropy_coef=entropy_coef,
        kl_coef=kl_coef,
        clip_low=clip_low,
        clip_high=clip_high,
        kl_kind=kl_kind,
    )
    return loss_sum, (metrics, logprobs, entropy)


def evaluate(samples, args):
    batch = packed(samples)
    names = ("rollout_temperature", "eps_clip", "eps_clip_high", "kl_loss_type")
    sequences = per_sequence(samples, args)
    return loss_of_logits(batch["logits"], batch, sequences, *(args[n] for n in names))


@pytest.mark.parametrize("case", by_id(POLICY["cases"]))
def test_evolving_rl_loss(case):
    want, divisor = case["expected"], case["global_batch_size"]
    (loss_sum, aux), grad = evaluate(case["samples"], case["args"])
    metrics, logprobs, entropy = aux
    close = {"rtol": 2e-4, "atol": 1e-5}
    np.testing.assert_allclose(loss_sum / divisor, want["final_loss"], **close)
    for name, got in (("log_probs", logprobs), ("entropy", entropy)):
        expected = np.concatenate([s[name] for s in want["per_sample"]])
        np.testing.assert_allclose(got[0, : len(expected)], expected, **close)
    names = {"policy_loss": "pg_loss", "entropy": "entropy_loss", "kl": "kl_loss", "loss": "loss",
             "clip_fraction": "pg_clipfrac", "approx_kl": "ppo_kl"}  # fmt: skip
    for ours, theirs in names.items():
        np.testing.assert_allclose(metrics[ours], want["reduced"][theirs], **close, err_msg=ours)
    expected = np.concatenate([np.asarray(g) for g in want["grad_logits"]])
    got = grad[0] / divisor
    np.testing.assert_allclose(got[: len(expected)], expected, rtol=1e-3, atol=2e-6)
    assert not np.any(got[len(expected) :])


@pytest.mark.parametrize("case", POLICY["micro_batch_split"])
def test_micro_batches_add_up(case):
    total = 0.0
    for micro in (micro for rank in case["ranks"] for micro in rank["micro_batches"]):
        loss_sum = evaluate(micro["samples"], case["args"])[0][0]
        want = micro["expected_sum_of_sample_means"]
        np.testing.assert_allclose(loss_sum, want, rtol=2e-4, atol=1e-5)
        total += loss_sum
    got = total / case["global_batch_size"]
    np.testing.assert_allclose(got, case["expected_total"], rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("case", POLICY["approx_kl"], ids=lambda c: c["kl_type"])
def test_kl_estimate(case):
    arrays = jnp.array(case["log_probs"]), jnp.array(case["ref_log_probs"])
    ratio = case["importance_ratio"]
    if ratio is None:
        got = kl_estimate(*arrays, kind=case["kl_type"])
    else:  # An importance-weighted estimate is a product, clamped last for low_var_kl.
        kind = case["kl_type"].replace("low_var_kl", "k3")
        got = jnp.array(ratio) * kl_estimate(*arrays, kind=kind)
        got = jnp.clip(got, -10, 10) if case["kl_type"] == "low_var_kl" else got
    np.testing.assert_allclose(got, case["expected"], rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("case", POLICY["clip"])
def test_clipped_policy_loss(case):
    difference = -jnp.array(case["old_minus_new_log_prob"])
    loss, clipped = jax.jit(losses.clipped_policy_loss)(
        difference,
        jnp.zeros_like(difference),
        jnp.array(case["advantages"]),
        clip_low=case["eps_clip"],
        clip_high=case["eps_clip_high"],
    )
    np.testing.assert_allclose(loss, case["expected"]["pg_loss"], rtol=2e-4, atol=1e-5)
    np.testing.assert_array_equal(clipped, case["expected"]["clipped"])
