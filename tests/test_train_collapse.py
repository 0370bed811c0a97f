"""The collapse rule on series of figures, and runs that it warns about, ends and takes back."""

import json
import math
import signal

import numpy as np
import pytest
from conftest import ROOT
from test_docs import _experience

from evolving_rl_jax.config import ConfigError, default_config, first_difference, validate
from evolving_rl_jax.record import figures as records
from evolving_rl_jax.record.metrics import read_metrics
from evolving_rl_jax.run.weights import CheckpointReader
from evolving_rl_jax.train.collapse import (
    LIMITS,
    CollapsedError,
    CollapseLog,
    CollapseRule,
)
from evolving_rl_jax.update.step import STEP_METRICS

HEALTHY = {
    "rollout/win_rate": 0.6,
    "rollout/scored_episodes": 64.0,
    "rollout/skill_valid": 0.95,
    "rollout/skill_tokens": 30.0,
    "train/sequences_solver": 64.0,
    "train/sequences_extractor": 16.0,
    "train/trained_tokens": 900.0,
    "train/logprob_gap_mean": 1e-5,
    **{f"train/entropy_{role}": 0.05 for role in ("solver", "extractor")},
    **{f"train/kl_{role}": 0.4 for role in ("solver", "extractor")},
    **{f"train/zero_variance_{role}": 0.3 for role in ("solver", "extractor")},
}


def settings(**changes):
    config = default_config().collapse
    for key, value in changes.items():
        node = config
        *groups, leaf = key.split("__")
        for group in groups:
            node = node[group]
        node[leaf] = value
    return config


def fired(rule, series):
    """Iterations at which the rule found something in a series of changes to HEALTHY."""
    return [i for i, new in enumerate(series) if rule.observe(i, {**HEALTHY, **new}) is not None]


# -- the rule --------------------------------------------------------------------------------------


def test_every_watched_figure_is_one_that_a_run_logs():
    known = {f"train/{name}" for name in STEP_METRICS}
    known |= set(records.rollout_figures(_experience()))
    for metric, count in LIMITS.values():
        assert {metric, count} - {None} <= known
    assert set(LIMITS) <= set(CollapseRule(settings()).state["settings"])


def test_the_defaults_say_nothing_about_a_healthy_run():
    rng = np.random.default_rng(0)
    series = [
        {
            "rollout/win_rate": 0.3 + 0.003 * i + rng.normal(0, 0.1),
            "rollout/skill_valid": rng.uniform(0.5, 1),
            "train/entropy_solver": rng.uniform(0.001, 1),
            "train/kl_solver": rng.uniform(0, 3),
            "train/zero_variance_solver": 1.0,
        }
        for i in range(150)
    ]
    assert fired(CollapseRule(settings()), series) == []


@pytest.mark.parametrize(
    ("key", "limit", "metric", "good", "bad"),
    [
        ("min_entropy__solver", 0.02, "train/entropy_solver", 0.02, 0.019),
        ("min_entropy__extractor", 0.02, "train/entropy_extractor", 0.5, 0.0),
        ("max_kl__solver", 1.0, "train/kl_solver", 1.0, 1.01),
        ("max_kl__extractor", 1.0, "train/kl_extractor", 0.1, 9.0),
        ("max_zero_variance__solver", 0.9, "train/zero_variance_solver", 0.9, 1.0),
        ("max_zero_variance__extractor", 0.9, "train/zero_variance_extractor", 0.0, 0.95),
        ("min_skill_valid", 0.5, "rollout/skill_valid", 0.5, 0.49),
        ("min_skill_tokens", 10.0, "rollout/skill_tokens", 10.0, 2.0),
        ("max_logprob_gap", 0.05, "train/logprob_gap_mean", 0.05, 0.06),
        ("max_logprob_gap", 0.05, "train/logprob_gap_mean", 0.0, math.nan),
    ],
)
def test_a_limit_that_is_broken_three_times_in_a_row(key, limit, metric, good, bad):
    config = settings(**{key: limit}, patience=3)
    series = [{metric: x} for x in (good, bad, bad, good, bad, bad, bad, bad, bad)]
    rule = CollapseRule(config)
    assert fired(rule, series) == [6]  # once, not at every iteration that follows
    assert fired(rule, [{metric: x} for x in (good, bad, bad, bad)]) == [3]  # after it was kept
    rule = CollapseRule(config)
    found = [rule.observe(i, {**HEALTHY, **new}) for i, new in enumerate(series)][6]
    text = str(found)
    assert metric in text and f"config.collapse.{key.replace('__', '.')} = {limit:g}" in text
    assert "iteration 7:" in text and f"= {bad:.4g} is" in text and "3 iterations in a row" in text
    assert found.action == "warn" and fired(CollapseRule(settings(action="off")), series) == []


def test_a_figure_that_measures_nothing_is_left_out():
    config = settings(min_entropy__extractor=0.02, patience=2)
    bad = {"train/entropy_extractor": 0.0}
    nothing = bad | {"train/sequences_extractor": 0.0}
    assert fired(CollapseRule(config), [nothing] * 5) == []
    assert fired(CollapseRule(config), [bad, nothing, nothing, bad]) == [3]
    rule = CollapseRule(settings(patience=1))
    without = {k: v for k, v in HEALTHY.items() if "skill" not in k}  # the arm grpo
    assert rule.observe(0, without) is None
    assert fired(rule, [{"rollout/win_rate": 0.0, "rollout/scored_episodes": 0.0}] * 30) == []


def test_the_win_rate_is_compared_with_its_own_best_mean():
    config = settings(max_win_rate_drop=0.2, window=4, patience=2)
    rates = [0.2] * 4 + [0.8] * 6 + [0.5] * 10
    means = [np.mean(rates[i - 3 : i + 1]) if i >= 3 else np.nan for i in range(len(rates))]
    broken = [np.nanmax([0, *means[: i + 1]]) - m > 0.2 for i, m in enumerate(means)]
    first = next(i for i in range(1, len(rates)) if broken[i - 1] and broken[i])
    rule = CollapseRule(config)
    assert fired(rule, [{"rollout/win_rate": r} for r in rates]) == [first] == [13]
    # One bad iteration within a window is no collapse.
    assert fired(CollapseRule(config), [{"rollout/win_rate": r} for r in [0.6] * 9 + [0.0]]) == []


def test_several_limits_in_one_event_and_one_after_the_other():
    rule = CollapseRule(settings(min_skill_tokens=5.0, patience=2))
    bad, worse = {"rollout/skill_valid": 0.0}, {"rollout/skill_tokens": 1.0}
    events = [rule.observe(i, {**HEALTHY, **bad, **worse}) for i in range(2)]
    assert [b.key for b in events[1].breaches] == ["min_skill_valid", "min_skill_tokens"]
    rule = CollapseRule(settings(min_skill_tokens=5.0, patience=2))
    assert fired(rule, [bad, bad | worse, bad | worse, bad | worse]) == [1, 2]


def test_returns_are_counted_and_then_the_run_is_stopped():
    config = settings(action="restore_best", patience=2, max_restores=2)
    rule, actions, trusted = CollapseRule(config), [], []
    for i in range(7):
        found = rule.observe(i, {**HEALTHY, "rollout/skill_valid": float(i == 0)})
        actions.append(found and found.action)
        trusted.append(rule.trusted)
    assert actions == [None, None, "restore_best", None, "restore_best", None, "stop"]
    assert trusted == [True] + [False] * 6
    with pytest.raises(CollapsedError, match="after 2 of at most 2 returns.*action=warn") as caught:
        rule.raise_if_stopped()
    assert "\n" not in str(caught.value) and isinstance(caught.value, ConfigError)
    with pytest.raises(CollapsedError):  # started again
        CollapseRule(config, json.loads(json.dumps(rule.state))).raise_if_stopped()
    CollapseRule(settings(action="warn", patience=2), rule.state).raise_if_stopped()


@pytest.mark.parametrize("action", ["warn", "stop", "restore_best"])
def test_a_rule_that_is_saved_anywhere_decides_the_same(action):
    rng = np.random.default_rng(3)
    config = settings(action=action, patience=2, window=3, max_win_rate_drop=0.1)
    series = [
        {"rollout/win_rate": rng.uniform(), "rollout/skill_valid": rng.choice([0.0, 0.9])}
        for _ in range(60)
    ]
    whole, parts = CollapseRule(config), CollapseRule(config)
    for i, new in enumerate(series):
        assert whole.observe(i, {**HEALTHY, **new}) == parts.observe(i, {**HEALTHY, **new})
        assert whole.trusted == parts.trusted and whole.state == parts.state
        parts = CollapseRule(config, json.loads(json.dumps(parts.state)))
    assert fired(CollapseRule(config), series)


def test_the_log_drops_what_a_resumed_run_repeats(tmp_path):
    rule = CollapseRule(settings(patience=1))
    found = rule.observe(4, {**HEALTHY, "rollout/skill_valid": math.nan})
    log = CollapseLog(tmp_path, resume_from=0)
    assert not list(tmp_path.iterdir())
    log.append(found, None)
    CollapseLog(tmp_path, resume_from=5, write=False).append(found, None)
    (tmp_path / "collapses.jsonl").open("a").write('{"iterat')
    for resume_from, count in ((5, 1), (4, 0)):
        CollapseLog(tmp_path, resume_from=resume_from)
        lines = (tmp_path / "collapses.jsonl").read_text().splitlines()
        assert len(lines) == count
        for line in lines:
            record = json.loads(line)
            assert record["iteration"] == 4 and record["breaches"][0]["value"] is None
            assert record["message"] == str(found)


def test_the_fields_of_the_log_are_documented(tmp_path):
    rule = CollapseRule(settings(patience=1))
    found = rule.observe(0, {**HEALTHY, "rollout/skill_valid": 0.0})
    CollapseLog(tmp_path, resume_from=0).append(found, None)
    record = json.loads((tmp_path / "collapses.jsonl").read_text())
    names = {k for k in record if k != "breaches"}
    names |= {f"breaches[].{k}" for k in record["breaches"][0]}
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    section = text.split("\n## collapses.jsonl\n")[1].split("\n## ")[0]
    assert {line.split("`")[1] for line in section.splitlines() if line[:3] == "| `"} == names


def test_what_the_settings_must_be():
    config = default_config()
    config.collapse.action = "restore_best"
    config.checkpoint.keep_best = 0
    with pytest.raises(ConfigError, match="checkpoint.keep_best must be >= 1 with collapse.action"):
        validate(config)
    config = default_config()
    config.algorithm.kl_coef.update(solver=0.0, extractor=0.0)
    config.collapse.max_kl.solver = 1.0
    with pytest.raises(ConfigError, match="collapse.max_kl.solver must be 0 without a KL term"):
        validate(config)
    config = default_config()
    config.collapse.action = "stop"
    config.collapse.min_entropy.solver = 0.1
    assert first_difference(default_config(), config) is None  # a stopped run may go on


# -- whole runs ------------------------------------------------------------------------------------

CONFIG = """
import importlib.util

import jax

from evolving_rl_jax.train import setup

make_train_step = getattr(setup, "unbroken", setup.make_train_step)
setup.unbroken = make_train_step


def collapsing(*args, **options):
    # The second update of the weights ruins them; so it does again after a return to the first.
    train_step = make_train_step(*args, **options)

    def step(state, batch):
        state, metrics = train_step(state, batch)
        if int(state.step) == 2:
            state = state._replace(params=jax.tree.map(lambda x: -3 * x, state.params))
        return state, metrics

    return step


setup.make_train_step = collapsing


def get_config():
    spec = importlib.util.spec_from_file_location("debug", {debug!r})
    debug = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(debug)
    config = debug.get_config()
    config.warmstart.enabled = False
    config.algorithm.entropy_coef.update(solver=0.01, extractor=0.01)  # a gradient without any win
    config.optimizer.update(schedule="constant", learning_rate=1e-4)
    config.train.update(num_iterations=8, minibatches=1)
    config.checkpoint.update(every=1, keep_last=20)
    config.eval.update(num_games=1, conditions=("none",))
    config.collapse.max_kl.extractor = 1e-2  # a hundred times what these steps do to it
    config.collapse.update(action="restore_best", patience=2, max_restores=1, min_skill_valid=0.0)
    return config
"""

# The worst moment: the collapse is written down, the checkpoint of what it led to is not.
KILLED = """
import os, signal, sys
from evolving_rl_jax.cli.main import main
from evolving_rl_jax.train import collapse

append = collapse.CollapseLog.append
collapse.CollapseLog.append = lambda *a: (append(*a), os.kill(os.getpid(), signal.SIGKILL))
sys.exit(main(sys.argv[1:]))
"""

# Trains in a folder, again in it, goes on in a killed one, and goes on in a copy with a warning.
TOGETHER = """
import json, shutil, sys
from evolving_rl_jax.cli.main import main

whole, killed, warned, *command = sys.argv[1:]
codes = [main([*command, f"--workdir={folder}"]) for folder in (whole, whole, killed)]
if warned:
    shutil.copytree(whole, warned)
    options = ("collapse.action=warn", "train.num_iterations=10", "checkpoint.every=5")
    codes.append(main([*command, f"--workdir={warned}", *(f"--config.{o}" for o in options)]))
print("codes", json.dumps(codes))
"""


def events(folder):
    return [json.loads(line) for line in (folder / "collapses.jsonl").read_text().splitlines()]


def unclocked(folder):
    timed = ("time/", "rate/", "rollout/overlapped_seconds")
    kept = [{k: v for k, v in r.items() if not k.startswith(timed)} for r in read_metrics(folder)]
    return [r["iteration"] for r in kept], kept


def steps(folder):
    return sorted(int(p.name) for p in folder.iterdir())


def arrays(folder, step):
    """Every array of a checkpoint, read without the program."""
    import jax
    import orbax.checkpoint as ocp

    tree = ocp.PyTreeCheckpointer().restore(folder / str(step) / "state")
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def same(one, other):
    assert one.keys() == other.keys() and len(one) > 10
    return all(np.array_equal(one[name], other[name]) for name in one)


def runs(program, tmp_path, *options, warned=""):
    """(undisturbed folder, killed and resumed folder, exit codes, what was said)."""
    pytest.importorskip("alfworld")
    config = tmp_path / "config.py"
    debug = str(ROOT / "configs" / "debug.py")
    config.write_text(CONFIG.format(debug=debug), encoding="utf-8")
    command = ("train", f"--config={config}", *options)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = program(*command, f"--workdir={killed}", code=KILLED)
    assert result.returncode == -signal.SIGKILL, result.stderr[-3000:]
    assert events(killed)[0]["restored"] is not None
    result = program(whole, killed, warned, *command, code=TOGETHER)
    assert result.returncode == 0, result.stderr[-3000:]
    codes = json.loads(result.stdout.rpartition("codes ")[2])
    assert unclocked(killed) == unclocked(whole) and events(killed) == events(whole)
    bank = "skills/bank.jsonl"
    assert (killed / bank).read_bytes() == (whole / bank).read_bytes()
    return whole, killed, codes, result.stderr


@pytest.mark.filterwarnings("ignore:Sharding info not provided")
def test_a_run_goes_back_to_its_best_checkpoint_and_then_ends(program, tmp_path):
    warned = tmp_path / "warned"
    whole, killed, codes, said = runs(program, tmp_path, warned=warned)
    assert codes == [2, 2, 2, 0]
    back, stop = events(whole)
    # The checkpoint before the update that ruined the policy: what follows it was played by others.
    assert (back["iteration"], back["action"], back["restored"]) == (3, "restore_best", 1)
    assert (stop["iteration"], stop["action"], stop["restored"]) == (6, "stop", None)
    kl = [r["train/kl_extractor"] for r in read_metrics(whole)]
    assert [x > 1e-2 for x in kl] == [False, False, True, True, False, True, True]
    assert unclocked(whole)[0] == list(range(7))  # numbers go on, the second start added none
    # The weights and moments after the return are those of the best, what they were is aside.
    checkpoints = whole / "checkpoints"
    assert steps(checkpoints) == list(range(1, 8)) and steps(whole / "collapsed") == [4]
    best = arrays(checkpoints, 1)
    assert same(arrays(checkpoints, 4), best) and not same(arrays(checkpoints, 2), best)
    assert not same(arrays(whole / "collapsed", 4), best)
    assert not same(arrays(checkpoints, 5), arrays(checkpoints, 2))
    assert all(same(arrays(killed / "checkpoints", i), arrays(checkpoints, i)) for i in range(1, 8))
    # None was scored by the figures of weights other than its own; the last has played nothing.
    for folder in (whole, killed):
        scores = CheckpointReader(folder / "checkpoints").scores
        assert scores == {0: 0.0, 1: 0.0, 2: None, 3: None, 4: 0.0, 5: None, 6: None}
    # No task comes twice: the order goes on where it was.
    lines = (whole / "skills" / "bank.jsonl").read_text().splitlines()
    bank = [json.loads(line) for line in lines]
    assert sorted({r["iteration"] for r in bank}) == list(range(7))
    assert len({(r["iteration"], r["source_task_id"]) for r in bank}) == 14
    assert len({r["source_task_id"] for r in bank}) == 14
    ended = [line for line in said.splitlines() if line.startswith("evolving-rl: training must")]
    assert len(ended) == 3 and "after 1 of at most 1 returns" in ended[0]
    assert "Traceback" not in said
    # A warning is given and saved once, between two scheduled checkpoints, and the run goes on.
    assert [(e["iteration"], e["action"]) for e in events(warned)[2:]] == [(8, "warn")]
    assert unclocked(warned)[0] == list(range(10))
    assert steps(warned / "checkpoints")[-2:] == [9, 10]
    assert "warning: training may have collapsed at iteration 9: train/kl_extractor = " in said
    assert (warned / "report.html").is_file()


@pytest.mark.slow
def test_what_a_collapsed_policy_played_ahead_is_dropped(program, tmp_path):
    options = ("rollout.overlap=1", "algorithm.importance.kind=truncated", "checkpoint.every=2")
    options += ("collapse.patience=3", "train.num_iterations=11")
    options = [f"--config.{o}" for o in options]
    whole, _, codes, _ = runs(program, tmp_path, *options)
    assert codes == [2, 2, 2]
    records = read_metrics(whole)
    first = events(whole)[0]["iteration"]
    assert first % 2 == 0  # between two checkpoints
    # Checkpoint 2 holds the ruined weights, whatever those that played before their update have won.
    assert events(whole)[0]["restored"] == 0
    assert records[first + 1]["rollout/policy_lag"] == 0
