"""Questions between the methods: their configurations train, from one warm start, and what needs no run is shown."""

import numpy as np
import pytest
from conftest import ROOT

from evolving_rl_jax import losses
from evolving_rl_jax.config import load_config
from evolving_rl_jax.record.metrics import read_metrics
from evolving_rl_jax.train.ablation.methods import read_methods

METHODS = ROOT / "configs" / "methods"
ABLATIONS = sorted((METHODS / "ablations").glob("*.py"))


def test_every_file_is_short_documented_and_compared_with_the_methods():
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    configs = read_methods([str(METHODS / "evolving_rl.py"), *map(str, ABLATIONS)], {})
    assert len(configs) == 1 + len(ABLATIONS) >= 3
    for file in ABLATIONS:
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 30, file
        assert f"`{file.relative_to(ROOT)}`" in page


def test_stripped_plays_weigh_what_kept_ones_do():
    """The same advantages and the same KL, on prompts without the skill."""
    kept = load_config(str(METHODS / "evolving_rl.py"), {})
    plays = kept.rollout.num_sources * kept.rollout.num_retrieved
    plays *= kept.rollout.num_skills * kept.rollout.num_repeats
    for name, share in (("stripped", 1.0), ("both", 0.5)):
        config = load_config(str(METHODS / "ablations" / f"guidance_{name}.py"), {})
        assert config.replay.sequences >= plays  # none is left out by lot
        assert config.replay.guided.signal == "advantage"
        assert config.replay.guided.weight == share * kept.algorithm.solver_weight
        assert config.replay.kl_coef == share * kept.algorithm.kl_coef.solver
        own = 0 if config.algorithm.arm == "extractor_only" else config.algorithm.solver_weight
        assert own == (1 - share) * kept.algorithm.solver_weight
        assert config.algorithm.kl_coef.solver == (1 - share) * kept.algorithm.kl_coef.solver


def tiny_overrides(tiny_config):
    """What makes the quickstart as small as the tests' runs, as options of a command."""
    small = load_config(tiny_config, {}).to_dict()
    large = load_config(str(ROOT / "configs" / "alfworld_quickstart.py"), {}).to_dict()

    def apart(one, other, prefix):
        for key, value in one.items():
            if isinstance(value, dict):
                yield from apart(value, other[key], f"{prefix}.{key}")
            elif value != other[key]:
                yield f"{prefix}.{key}={value}"

    return [*apart(small, large, "--config"), "--config.train.num_iterations=2",
            "--config.eval.num_games=2", "--config.eval.conditions=none"]  # fmt: skip


def test_each_trains_from_one_warm_start(program, tiny_config, tmp_path):
    pytest.importorskip("alfworld")
    files = [METHODS / "gigpo.py", *ABLATIONS]
    result = program(
        "ablation", f"--configs={','.join(map(str, files))}", f"--workdir={tmp_path / 'all'}",
        "--seeds=1", *tiny_overrides(tiny_config),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    records = {
        file.stem: read_metrics(tmp_path / "all" / "runs" / f"{file.stem}-0") for file in files
    }
    for name, found in records.items():
        assert len(found) >= 2, name
        assert all(np.isfinite(record["train/loss"]) for record in found)
    assert all(0 <= r["rollout/turns_with_credit"] <= 1 for r in records["gigpo"])
    for name in ("guidance_stripped", "guidance_both"):
        found = records[name]
        # Of two updates; none where a policy as small as this wins nothing.
        assert all(r["replay/guided"] == r["train/sequences_detached"] * 2 for r in found)


@pytest.mark.parametrize("scale", ["std", "none", "leave_one_out"])
def test_rewards_of_plus_and_minus_one_teach_the_extractor_the_same(scale):
    """Divided by the spread they are equal; otherwise twice as large, which a weight says too."""
    rng = np.random.default_rng(0)
    wins = (rng.random((6, 3, 4, 2)) < 0.5).astype(np.float32)
    played = (rng.random(wins.shape) < 0.9).astype(np.float32)
    valid = np.ones((6, 4), np.float32)

    def extractor(wins):
        return np.asarray(
            losses.skill_advantages(
                wins, skill_valid=valid, episode_mask=played, extractor_weight=1.0, scale=scale
            ).extractor
        )

    # By hand: a skill is worth the mean of its plays, and is compared with the others of its source.
    worth = (wins * played).sum((1, 3)) / played.sum((1, 3))
    away = worth - worth.mean(1, keepdims=True)
    spread = worth.std(1, keepdims=True)
    want = {"std": away / np.where(spread, spread, 1), "none": away, "leave_one_out": away * 4 / 3}
    np.testing.assert_allclose(extractor(wins), want[scale], atol=1e-4)
    factor = 1 if scale == "std" else 2
    np.testing.assert_allclose(extractor(2 * wins - 1), factor * extractor(wins), atol=1e-4)


def test_they_differ_where_a_skill_is_invalid():
    """One that cannot be read is worth 0: as much as losing always, or among +-1 as much as a draw."""
    wins = np.zeros((1, 1, 3, 4), np.float32)
    wins[0, 0, 1, 0] = wins[0, 0, 2, :3] = 1  # of four plays none, one and three are won
    valid = np.array([[0, 1, 1]], np.float32)

    def extractor(wins):
        return losses.skill_advantages(wins, skill_valid=valid, extractor_weight=1.0).extractor[0]

    success, signs = extractor(wins), extractor(2 * wins - 1)
    assert success[0] < success[1] < success[2]
    assert signs[1] < signs[0] < signs[2]
