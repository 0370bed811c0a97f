"""Intervals and paired comparisons against closed forms and plain loops."""

import math

import numpy as np
import pytest

from evolving_rl_jax.eval import statistics
from evolving_rl_jax.eval.compare import before_after


@pytest.mark.parametrize(("k", "n"), [(0, 12), (5, 12), (12, 12), (163, 480)])
def test_wilson_interval_is_the_closed_form(k, n):
    z = 1.959963984540054
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    np.testing.assert_allclose(
        statistics.wilson_interval(k, n), (centre - half, centre + half), atol=1e-9
    )


def test_wilson_interval_without_games_says_nothing():
    assert statistics.wilson_interval(0, 0) == (0.0, 1.0)


def test_paired_difference_matches_the_normal_interval_on_many_games():
    rng = np.random.default_rng(0)
    a, b = rng.random(800) < 0.35, rng.random(800) < 0.6
    value, low, high = statistics.paired_difference(a, b, 3)
    d = b.astype(float) - a
    half = 1.96 * d.std(ddof=1) / math.sqrt(d.size)
    assert value == pytest.approx(d.mean())
    np.testing.assert_allclose((low, high), (d.mean() - half, d.mean() + half), atol=0.006)
    assert statistics.paired_difference(a, b, 3) == (value, low, high)


def test_pairing_is_sharper_than_two_separate_shares():
    a = np.array([1, 0] * 200)
    b = a.copy()
    b[1:41:2] = 1  # wins 20 more of the same 400 games and loses none
    value, low, high = statistics.paired_difference(a, b, 0)
    assert value == pytest.approx(0.05) and 0.025 < low < value < high < 0.08


def test_groups_are_resampled_together():
    # 40 skills, each deciding ten games: ten times fewer independent outcomes.
    rng = np.random.default_rng(1)
    a, b = np.zeros(400), np.repeat(rng.random(40) < 0.5, 10).astype(float)
    alone = statistics.paired_difference(a, b, 0)
    together = statistics.paired_difference(a, b, 0, groups=np.repeat(np.arange(40), 10).tolist())
    assert together[0] == pytest.approx(alone[0])
    ratio = (together[2] - together[1]) / (alone[2] - alone[1])
    assert ratio == pytest.approx(math.sqrt(10), rel=0.1)


@pytest.mark.parametrize(
    ("a", "b", "value"), [([1, 0], [1, 0], 0.0), ([0] * 5, [1] * 5, 1.0), ([0], [1], 1.0)]
)
def test_no_variance_gives_a_point(a, b, value):
    assert statistics.paired_difference(a, b, 0) == (value, value, value)


def test_few_games_give_a_finite_interval():
    value, low, high = statistics.paired_difference([0, 0, 1], [1, 0, 1], 0)
    assert low <= value <= high and math.isfinite(low) and math.isfinite(high)


def test_wrong_shapes_name_what_was_found():
    with pytest.raises(ValueError, match=r"got shapes \(2,\) and \(3,\)"):
        statistics.paired_difference([0, 1], [0, 1, 1], 0)
    with pytest.raises(ValueError, match=r"got shapes \(0,\)"):
        statistics.paired_difference([], [], 0)
    with pytest.raises(ValueError, match="got 1 labels"):
        statistics.paired_difference([0, 1], [0, 1], 0, groups=[1])


def test_mcnemar_is_the_two_sided_binomial_sum():
    a = [1] * 3 + [0] * 11 + [1] * 5
    b = [0] * 3 + [1] * 11 + [1] * 5
    tail = sum(math.comb(14, i) for i in range(4)) / 2**14
    assert statistics.mcnemar_p(a, b) == pytest.approx(2 * tail)
    assert statistics.mcnemar_p([1, 0], [1, 0]) == 1.0


def _result(wins, status="ok"):
    games = [
        {"id": f"g{i}", "split": "s", "conditions": {"own": {"won": w, "status": "ok"}}}
        for i, w in enumerate(wins)
    ]
    games[0]["conditions"]["own"]["status"] = status
    return {"games": games}


def test_compare_pairs_games_by_id_and_leaves_failed_ones_out():
    before = _result([True, False, False, True], status="env_error")
    after = _result([True, True, False, True, True])
    after["games"].reverse()
    (row,) = before_after(before, after)
    assert (row["split"], row["condition"]) == ("s", "own")
    assert (row["before"]["n"], row["before"]["excluded"]) == (3, 1)
    assert row["before"]["success"] == pytest.approx(1 / 3)
    assert row["after"]["n"] == 5 and row["difference"]["n"] == 3
    assert row["difference"]["value"] == pytest.approx(1 / 3)


def test_compare_with_one_side_only():
    (row,) = before_after(_result([True, False]), None)
    assert row["after"] is None and row["difference"] is None
    assert before_after(None, None) == []


def test_an_interval_of_plays_that_share_a_cause():
    rng = np.random.default_rng(2)
    won = np.repeat(rng.random(40) < 0.5, 10)
    _, low, high, how = statistics.share(won, np.repeat(np.arange(40), 10).tolist())
    _, alone_low, alone_high, alone = statistics.share(won, list(range(400)))
    assert (how, alone) == ("bootstrap", "wilson")
    assert (alone_low, alone_high) == statistics.wilson_interval(int(won.sum()), 400)
    assert (high - low) / (alone_high - alone_low) == pytest.approx(math.sqrt(10), rel=0.12)
    same = statistics.share([1] * 30, [i // 10 for i in range(30)])
    assert same == (1.0, *statistics.wilson_interval(3, 3), "wilson over groups")


def test_macro_is_the_mean_of_types_and_its_interval_covers():
    won, types = [1] * 9 + [0] * 1 + [0, 1], ["a"] * 10 + ["b"] * 2
    value, low, high, _ = statistics.share(won, list(range(12)), columns=types)
    assert value == pytest.approx((0.9 + 0.5) / 2) and low < value < high
    rng = np.random.default_rng(3)
    covered = 0
    for seed in range(24):
        a, b = rng.random(60) < 0.3, rng.random(30) < 0.8
        sample = np.concatenate([a, b])
        kinds = ["a"] * 60 + ["b"] * 30
        _, low, high, _ = statistics.share(sample, list(range(90)), columns=kinds, seed=seed)
        covered += low <= 0.55 <= high
    assert covered >= 20
    value, low, high, _ = statistics.share([1, 1], [0, 1], columns=["a", "b"])
    assert value == 1.0 and low < 0.6 and high == pytest.approx(1.0)


def test_sign_flips_are_mcnemar_for_single_games_and_wider_for_groups():
    a = [1] * 3 + [0] * 9 + [1] * 5
    b = [0] * 3 + [1] * 9 + [1] * 5
    exact = statistics.mcnemar_p(a, b)
    assert statistics.sign_flip_p(a, b, list(range(17))) == pytest.approx(exact, abs=0.01)
    groups = [0] * 3 + [1] * 9 + [2] * 5
    assert statistics.sign_flip_p(a, b, groups) == 1.0  # two groups that disagree
    assert statistics.sign_flip_p(a, a, groups) == 1.0
    four = [i // 3 for i in range(12)]
    assert statistics.sign_flip_p([0] * 12, [1] * 12, four) == pytest.approx(2 / 2**4)


def test_pairs_without_any_difference_still_have_a_width():
    plays = {(f"g{i}", 1): True for i in range(20)}
    row = statistics.paired(plays, plays, {})
    assert row["value"] == 0 and row["low"] < 0 < row["high"] and row["p"] == 1.0
    few = statistics.paired(plays, plays, {f"g{i}": "one skill" for i in range(20)})
    assert few["high"] > row["high"]  # twenty games with one skill say less
    lost = {play: False for play in plays}
    row = statistics.paired(lost, plays, {})
    assert row["value"] == 1 and row["low"] < 0.95 and (row["gained"], row["lost"]) == (20, 0)
    assert statistics.paired(plays, {("other", 1): True}, {}) is None


def test_sites_are_drawn_as_one_under_every_condition():
    def rows(**more):
        return [
            {"id": f"t{i}", "hash": "h", "split": "s", "retrieved": {"id": f"s{i // 2}", "hash": "x"},
             "conditions": {c: {"won": i < 6, "status": "ok"} for c in ("none", "own")}}
            | {k: v(i) for k, v in more.items()}
            for i in range(12)
        ]  # fmt: skip

    plain, sites = {"games": rows()}, {"games": rows(drawn=lambda i: f"site {i // 6}")}
    older = {"games": rows(group=lambda i: f"site {i // 6}"), "web": {"stop_at_error": {}}}
    for result, labels in ((plain, (12, 6)), (sites, (2, 2)), (older, (2, 2))):
        widths = []
        for condition, number in zip(("none", "own"), labels, strict=True):
            plays = statistics.outcomes(result)["s", condition]
            groups = statistics.drawn_together(condition, result)
            assert len({groups.get(play[0], play[0]) for play in plays}) == number
            found = statistics.success(plays, groups)
            widths.append(found["high"] - found["low"])
        if result is not plain:  # one site is won and one lost: nothing is known of others
            assert widths == [1.0, 1.0]
