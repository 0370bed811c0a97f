"""What a full disk, a kill or a hand in the files leaves of checkpoints, and what goes on from there."""

from __future__ import annotations

import contextlib
import json
import resource
import time
from types import SimpleNamespace

import jax
import pytest
from test_train_checkpoint import EXTRA, KEEP, OPTIMIZER, assert_identical, model, numbered

from evolving_rl_jax import parallel
from evolving_rl_jax.files import SaveFailed
from evolving_rl_jax.train.checkpoint import Checkpoints
from evolving_rl_jax.train.saves import Saves
from evolving_rl_jax.update import state as state_lib


@pytest.fixture(scope="module")
def mesh():
    return parallel.make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def abstract(mesh):
    return state_lib.abstract_state(model(), OPTIMIZER, mesh)


@pytest.fixture(scope="module")
def state(mesh):
    return state_lib.init_state(model(), OPTIMIZER, mesh, jax.random.key(0))


@pytest.fixture
def folder(tmp_path, state):
    """With the checkpoints 10, 20 and 30; 10 is the best."""
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder, KEEP)
    for i, score in ((10, 0.9), (20, None), (30, 0.5)):
        checkpoints.save(i, numbered(state, i), EXTRA | {"iteration": i})
        checkpoints.score(i, score)
    checkpoints.close()
    return folder


@contextlib.contextmanager
def full_disk():
    """No file may grow beyond 2 kB: what is written in the background fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def failed_save(checkpoints, state, step):
    """A save of which nobody has heard yet that it failed."""
    with full_disk():
        checkpoints.save(step, numbered(state, step), EXTRA | {"iteration": step})
        end = time.monotonic() + 60
        while checkpoints._manager.is_saving_in_progress() and time.monotonic() < end:
            time.sleep(0.01)


def test_after_a_failed_save_the_next_is_made(folder, state, abstract, caplog):
    checkpoints = Checkpoints(folder, KEEP)
    failed_save(checkpoints, state, 40)
    checkpoints.save(50, numbered(state, 50), EXTRA | {"iteration": 50})
    assert f"{folder / '40'} could not be written: " in caplog.text
    checkpoints.wait()  # of the last one, which is there
    assert checkpoints.steps()[-2:] == [30, 50] and 40 not in checkpoints.scores
    restored, extra = checkpoints.restore(abstract)
    assert extra["iteration"] == 50
    assert_identical(restored, numbered(state, 50))
    checkpoints.close()


def test_nothing_offers_a_failed_save(folder, state, abstract):
    checkpoints = Checkpoints(folder, KEEP)
    failed_save(checkpoints, state, 40)
    assert checkpoints.restore(abstract)[1]["iteration"] == 30
    assert checkpoints.steps()[-1] == 30 and checkpoints.best() == 10
    with pytest.raises(SaveFailed, match="a checkpoint in .* could not be written: "):
        checkpoints.wait()
    checkpoints.wait()  # it was told
    checkpoints.close()


def test_what_killed_saves_have_left_is_removed_by_the_next_save(folder, state):
    left = folder / "20.orbax-checkpoint-tmp"
    (left / "state").mkdir(parents=True)
    assert (
        Checkpoints(folder, KEEP).steps() == [10, 20, 30] and left.exists()
    )  # a reader removes nothing
    checkpoints = Checkpoints(folder, KEEP)
    checkpoints.save(40, numbered(state, 40), EXTRA | {"iteration": 40})
    checkpoints.close()
    assert not left.exists() and (folder / "40").is_dir()


def test_facts_changed_by_hand_are_not_believed(folder, abstract, caplog):
    path = folder / "30" / "extra" / "metadata"
    facts = json.loads(path.read_text())
    assert facts["iteration"] == 30
    path.write_text(json.dumps(facts | {"iteration": 90}))
    assert Checkpoints(folder, KEEP).restore(abstract)[1]["iteration"] == 20
    assert "its facts are not those that were saved" in caplog.text
    del facts["checkpoint_facts"]  # as an earlier version wrote it
    path.write_text(json.dumps(facts))
    assert Checkpoints(folder, KEEP).restore(abstract)[1]["iteration"] == 30


def test_a_notice_is_not_replaced_by_a_save_that_fails(folder, state):
    said = []
    saves = object.__new__(Saves)
    saves._checkpoints, saves._lora = Checkpoints(folder, KEEP), None
    saves._parts, saves._memory = SimpleNamespace(say=said.append), None
    saves.rule = SimpleNamespace(state={})
    with full_disk():
        saves.save_last(40, state)
    (line,) = said
    assert line.startswith("iteration 40 is not saved: a checkpoint in ")
    assert line.endswith("the newest checkpoint is that after iteration 30")
    saves.save_last(40, state)  # there is room again
    assert said[1] == "saved after iteration 40" and (folder / "40").is_dir()
    saves._checkpoints.close()
