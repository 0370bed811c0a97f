"""Checkpoints: bit-identical round trip, what is kept, damage, kills and foreign configurations."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from evolving_rl_jax import models, parallel
from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.train.checkpoint import Checkpoints
from evolving_rl_jax.update import optimizer as optimizer_lib
from evolving_rl_jax.update import state as state_lib

KEEP = ConfigDict({"keep_last": 2, "keep_best": 1})
OPTIMIZER = optimizer_lib.make_optimizer(
    ConfigDict(
        {
            "optimizer": {
                "name": "adamw",
                "learning_rate": 1e-3,
                "b1": 0.9,
                "b2": 0.95,
                "eps": 1e-8,
                "weight_decay": 0.1,
                "clip_norm": 1.0,
                "schedule": "constant",
                "warmup_steps": 0,
            }
        }
    )
)
EXTRA = {"iteration": 30, "task_cursor": 480, "bank_records": 12, "config_hash": "abc"}


def model(vocab_size=32):
    return models.ModelConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
    )


@pytest.fixture(scope="module")
def mesh():
    return parallel.make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def abstract(mesh):
    return state_lib.abstract_state(model(), OPTIMIZER, mesh)


@pytest.fixture(scope="module")
def state(mesh):
    return state_lib.init_state(model(), OPTIMIZER, mesh, jax.random.key(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory, state):
    """A folder with the checkpoints 10, 20 and 30 of a run whose best is 10; 30 has not played yet."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    checkpoints = Checkpoints(folder, KEEP)
    for i, score in ((10, 0.9), (20, None), (30, 0.5)):
        checkpoints.save(i, numbered(state, i), EXTRA | {"iteration": i})
        checkpoints.score(i, score)  # that of 30 is lost with the process
    checkpoints.close()
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def numbered(state, i):
    return state._replace(step=jnp.int32(i), params=jax.tree.map(lambda p: p + i, state.params))


def assert_identical(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_restores_the_same_bits_and_facts(saved, state, abstract):
    restored, extra = Checkpoints(saved, KEEP).restore(abstract)
    assert_identical(restored, numbered(state, 30))
    assert extra == EXTRA
    assert all(
        x.sharding == a.sharding
        for x, a in zip(jax.tree.leaves(restored), jax.tree.leaves(abstract), strict=True)
    )


def test_latest_best_and_particular(saved, abstract):
    checkpoints = Checkpoints(saved, KEEP)
    for which, step in (("latest", 30), ("best", 10), (20, 20), ("10", 10)):
        restored, extra = checkpoints.restore(abstract, which)
        assert restored.step == extra["iteration"] == step


def test_keeps_the_newest_and_the_best(folder, state, abstract):
    checkpoints = Checkpoints(folder, KEEP)  # scores are read back from the files
    assert checkpoints.scores == {10: 0.9, 20: None}
    checkpoints.score(30, 0.2)
    for i in (40, 50):
        checkpoints.save(i, state, EXTRA)
        checkpoints.score(i, 0.1)
        checkpoints.wait()
    assert checkpoints.steps() == Checkpoints(folder, KEEP).steps() == [10, 40, 50]
    assert sorted(os.listdir(folder)) == ["10", "40", "50"]
    assert Checkpoints(folder, KEEP).scores == {10: 0.9, 30: 0.2, 40: 0.1}


def test_a_checkpoint_that_was_not_scored_yet_is_not_deleted_as_the_worst(tmp_path, state):
    """The best may be among those whose rollout has not come; one that had none stays no longer."""
    keep = ConfigDict({"keep_last": 1, "keep_best": 1})
    checkpoints = Checkpoints(tmp_path, keep)
    checkpoints.score(0, 0.3)  # the policy that the run began with
    scores = {1: 0.5, 2: "late", 3: 0.1, 4: None, 5: 0.1}
    seen = []
    for i, score in scores.items():
        checkpoints.save(i, state, EXTRA)
        checkpoints.wait()
        seen.append(checkpoints.steps())
        if score != "late":
            checkpoints.score(i, score)
        if i == 3:
            checkpoints.score(2, 0.9)  # too late for the first place, were it gone
    assert seen == [[1], [1, 2], [1, 2, 3], [2, 4], [2, 5]]
    assert checkpoints.best() == 2
    checkpoints.score(2, 0.0)  # the first that comes counts
    checkpoints.close()
    assert Checkpoints(tmp_path, keep).scores == {0: 0.3, 2: 0.9, 4: None}


def test_a_score_is_of_the_weights_that_a_number_stands_for_now(tmp_path, state):
    """After a return to an earlier state the same numbers are reached with other weights."""
    checkpoints = Checkpoints(tmp_path, KEEP)
    checkpoints.save(1, state, EXTRA)
    checkpoints.score(1, 0.9)
    checkpoints.save(1, numbered(state, 1), EXTRA)
    assert 1 not in checkpoints.scores and checkpoints.best() is None
    checkpoints.score(1, 0.2)
    checkpoints.save(2, state, EXTRA)
    checkpoints.close()
    assert Checkpoints(tmp_path, KEEP).scores == {1: 0.2}


def test_nothing_is_written_before_the_first_save(tmp_path, abstract):
    checkpoints = Checkpoints(tmp_path / "checkpoints", KEEP)
    assert checkpoints.restore(abstract) is None
    assert not os.listdir(tmp_path)


def test_a_saved_state_may_be_donated_at_once(tmp_path, state, abstract):
    checkpoints = Checkpoints(tmp_path, KEEP)
    mine = numbered(state, 1)
    expected = jax.device_get(mine)
    checkpoints.save(1, mine, extra := dict(EXTRA))
    extra["iteration"] = -1
    jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)(mine)
    restored, facts = checkpoints.restore(abstract)
    assert_identical(restored, expected)
    assert facts == EXTRA


def test_saving_again_replaces(folder, state, abstract):
    checkpoints = Checkpoints(folder, KEEP)
    checkpoints.save(30, numbered(state, 7), EXTRA)
    assert checkpoints.restore(abstract)[0].step == 7


def _largest(step_folder):
    files = [f for f in (step_folder / "state").rglob("*") if f.is_file()]
    return max(files, key=lambda f: f.stat().st_size)


def _truncate(step_folder):
    file = _largest(step_folder)
    file.write_bytes(file.read_bytes()[:100])


def _flip_a_bit(step_folder):
    file = _largest(step_folder)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def _empty_everything(step_folder):
    for file in step_folder.rglob("*"):
        if file.is_file():
            file.write_bytes(b"")


DAMAGE = {
    "truncated": _truncate,
    "bit flipped": _flip_a_bit,
    "emptied": _empty_everything,
    "state missing": lambda p: shutil.rmtree(p / "state"),
    "facts missing": lambda p: shutil.rmtree(p / "extra"),
    "facts no JSON": lambda p: (p / "extra" / "metadata").write_text("{"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_falls_back_to_the_one_before(folder, state, abstract, caplog, capfd, kind):
    DAMAGE[kind](folder / "30")
    checkpoints = Checkpoints(folder, KEEP)
    with caplog.at_level(logging.WARNING):
        restored, extra = checkpoints.restore(abstract)
    assert_identical(restored, numbered(state, 20))
    assert extra["iteration"] == 20
    first, second = (r.getMessage() for r in caplog.records)
    assert first.startswith(f"checkpoint {folder / '30'} is damaged: ") and "\n" not in first
    assert second == "going on from the checkpoint of iteration 20 instead"
    assert "Traceback" not in capfd.readouterr().err
    assert (folder / "30").is_dir()
    # The run reaches iteration 30 again: the damaged one is out of the way, and not lost.
    checkpoints.save(30, numbered(state, 30), EXTRA)
    assert checkpoints.restore(abstract)[0].step == 30
    assert (folder / "damaged_30.0").is_dir()


def test_all_damaged_is_one_line_that_names_everything(folder, abstract):
    for step in (10, 20, 30):
        shutil.rmtree(folder / str(step) / "extra")
    before = sorted(folder.rglob("*"))
    with pytest.raises(ConfigError) as e:
        Checkpoints(folder, KEEP).restore(abstract)
    message = str(e.value)
    assert "\n" not in message and str(folder) in message
    assert all(f"{step} (" in message for step in (10, 20, 30))
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("which", [7, "newest"])
def test_unknown_checkpoint(saved, abstract, which):
    with pytest.raises(ConfigError, match=rf"one of \[10, 20, 30\] in .* got {which!r}"):
        Checkpoints(saved, KEEP).restore(abstract, which)


def test_best_without_scores(tmp_path, state, abstract):
    checkpoints = Checkpoints(tmp_path, KEEP)
    checkpoints.save(1, state, EXTRA)
    with pytest.raises(ConfigError, match="none of them was scored"):
        checkpoints.restore(abstract, "best")


def test_another_model_is_an_error_not_damage(folder, mesh):
    other = state_lib.abstract_state(model(vocab_size=48), OPTIMIZER, mesh)
    with pytest.raises(ConfigError, match=r"params/embedding \(48, 16\) .* got \(32, 16\)"):
        Checkpoints(folder, KEEP).restore(other)
    assert sorted(os.listdir(folder)) == ["10", "20", "30"]


WRITER = """
import sys, jax
sys.path.insert(0, {tests!r})
from test_train_checkpoint import *
mesh = parallel.make_mesh(devices=jax.devices()[:1])
state = state_lib.init_state(model(), OPTIMIZER, mesh, jax.random.key(0))
checkpoints = Checkpoints({folder!r}, KEEP)
for i in range(1, 10_000):
    checkpoints.save(i, numbered(state, i), {{"iteration": i}})
    print(i, flush=True)
"""


RESHARDER = """
import sys, jax
sys.path.insert(0, {tests!r})
from test_train_checkpoint import *
first, second = parallel.make_mesh(2, 2, 2), parallel.make_mesh(1, 8, 1)
state = state_lib.init_state(model(), OPTIMIZER, first, jax.random.key(0))
checkpoints = Checkpoints({folder!r}, KEEP)
checkpoints.save(1, state, EXTRA)
abstract = state_lib.abstract_state(model(), OPTIMIZER, second)
restored, _ = checkpoints.restore(abstract)
assert_identical(jax.device_get(restored), jax.device_get(state))
kernel = restored.params["layers"]["mlp"]["up_proj"]["kernel"]
assert kernel.addressable_shards[0].data.shape == (2, 2, 32), kernel.sharding
checkpoints.save(2, restored, EXTRA)
assert checkpoints.restore(abstract)[0].params["embedding"].sharding.mesh.shape["fsdp"] == 8
"""


def test_restores_into_the_shards_of_another_mesh(tmp_path):
    code = RESHARDER.format(tests=os.path.dirname(__file__), folder=str(tmp_path))
    env = os.environ | {
        "PYTHONPATH": os.path.dirname(os.path.dirname(__file__)),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
    }
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_kill_while_saving_leaves_a_complete_checkpoint(tmp_path, state, abstract):
    code = WRITER.format(tests=os.path.dirname(__file__), folder=str(tmp_path))
    env = os.environ | {"PYTHONPATH": os.path.dirname(os.path.dirname(__file__))}
    writer = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE)
    started = [int(writer.stdout.readline()) for _ in range(5)][-1]
    time.sleep(0.03)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    checkpoints = Checkpoints(tmp_path, KEEP)
    restored, extra = checkpoints.restore(abstract)
    assert extra["iteration"] >= started - 1  # the one that was being written may be missing
    assert_identical(restored, numbered(state, extra["iteration"]))
    again = extra["iteration"] + 1
    checkpoints.save(again, numbered(state, again), EXTRA)
    assert checkpoints.restore(abstract)[0].step == again
