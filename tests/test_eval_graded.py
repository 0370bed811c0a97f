"""Episodes that are worth more or less instead of won or lost: what a panel and the report say of them."""

import numpy as np
import pytest
from test_eval_panel import play, result_of

from evolving_rl_jax.eval.results import success_table
from evolving_rl_jax.report.results import _graded


def test_graded_plays_have_a_mean_score_beside_success(tmp_path):
    played = play()
    assert "score" not in result_of(tmp_path, played, "won")["summary"]["valid_unseen"]["none"]
    games = played[1]
    for i, game in enumerate(games):
        game.episodes["none"].reward = 0.1 * i
    result = result_of(tmp_path, played, "graded")
    rows = result["summary"]["valid_unseen"]
    members = [g for g in games if g.task.split == "valid_unseen"]
    mean = np.mean([g.episodes["none"].reward for g in members])
    score = rows["none"]["score"]
    assert score["value"] == pytest.approx(mean) and score["low"] < mean < score["high"]
    assert "score" not in rows["own"]
    assert f"mean score {mean:.2f} [" in success_table(result)
    told = _graded(1.0, (("warm start", result), ("trained policy", None)))
    assert len(told) == 1 and f"no skill: {mean:.2f} [" in told[0]
