"""ALFRED's own records, where EVOLVING_RL_ALFRED names their folder: all of them as games."""

import os

import pytest
from official_games import no_bar

from evolving_rl_jax import envs
from evolving_rl_jax.envs.alfworld.alfred.convert import convert
from evolving_rl_jax.envs.alfworld.check import compare
from evolving_rl_jax.envs.alfworld.tasks import load_tasks

pytest.importorskip("alfworld")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    source = os.environ.get("EVOLVING_RL_ALFRED")
    if not source:
        pytest.skip("EVOLVING_RL_ALFRED must name the folder of ALFRED's records, it is not set")
    out = tmp_path_factory.mktemp("real") / "out"
    report = convert([source], out, progress=no_bar)
    print("\n".join(report.lines()))
    return report, load_tasks(out)


@pytest.mark.slow
def test_real_records_become_games(real):
    report, tasks = real
    assert sum(report.types["valid_seen"].values()) >= 168
    assert report.num_games + sum(map(len, report.left_out.values())) == sum(
        report.records.values()
    )
    accuracy = {row.rule: row.right / row.total for row in report.accuracy}
    assert accuracy["nearest_pickup"] > 0.96 and accuracy["both rules"] > 0.95
    assert len(tasks) == report.num_games


@pytest.mark.slow
def test_real_games_are_won_by_their_walkthroughs_on_the_published_engine(real):
    engine = envs.make("alfworld", engine="stock")
    for task in (t for t in real[1] if t.split in ("valid_seen", "heldout_types_seen")):
        engine.reset(task)
        assert [engine.step(c).won for c in task.meta["walkthrough"]][-1], task.path


@pytest.mark.slow
def test_our_engine_plays_real_games_as_the_published_one_does(real):
    seen = [t for t in real[1] if t.split in ("valid_seen", "heldout_types_seen")]
    native, stock = (envs.make("alfworld", engine=name) for name in ("native", "stock"))
    steps = [
        compare(native, stock, t, t.meta["walkthrough"]) for t in seen[:: len(seen) // 60][:60]
    ]
    assert len(steps) == 60 and sum(steps) >= 2000
