"""The paired difference of two results: what names mean, and what cannot be compared."""

import json

import pytest

from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.eval.compare import compare, compare_table, find_results


def result(name, wins, iteration=0, temperature=1.0, **changes):
    games = [
        {"id": f"g{i}", "split": "s", "seed": 1, "conditions": {"none": {"won": w, "status": "ok"}}}
        for i, w in enumerate(wins)
    ]
    facts = {"name": name, "iteration": iteration, "temperature": temperature, "seeds": [1]}
    return {**facts, "game_list_hash": "h", "versions": {"jax": "1"}, "games": games, **changes}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "eval").mkdir(parents=True)
    for r in (
        result("warmstart", [0, 0, 1, 0]),
        result("checkpoint_00004", [1, 0, 1, 0], 4),
        result("checkpoint_00010", [1, 1, 1, 0], 10),
        result("checkpoint_00010", [1, 1, 1, 1], 10, 0.3),
    ):
        path = folder / "eval" / f"{r['name']}-t{r['temperature']:g}.json"
        path.write_text(json.dumps(r))
    part = result("checkpoint_00010-train", [1, 1], 10, game_list_hash="of the part")
    (folder / "eval" / "checkpoint_00010-train-t1.json").write_text(json.dumps(part))
    (folder / "eval" / "stream-x-t1.json").write_text(json.dumps({"mode": "stream", "plays": []}))
    return folder


def test_what_a_name_means(run):
    def names(name, workdir=""):
        return {(r["name"], t) for t, r in find_results(name, workdir).items()}

    newest = {("checkpoint_00010", 1.0), ("checkpoint_00010", 0.3)}
    assert names(str(run)) == names("10", str(run)) == newest
    assert names("4", str(run)) == {("checkpoint_00004", 1.0)}
    assert names("warmstart", str(run)) == {("warmstart", 1.0)}
    assert names(str(run / "eval" / "warmstart-t1.json")) == {("warmstart", 1.0)}
    (run / "eval" / "final-t1.json").write_text(json.dumps(result("final", [1], 12)))
    assert names(str(run)) == names("12", str(run)) == {("final", 1.0)}


def test_games_are_paired_at_every_common_temperature(run):
    sides = find_results("warmstart", str(run)), find_results("10", str(run))
    found = compare(*sides, ("A", "B"))
    (comparison,) = found["comparisons"]
    assert comparison["temperature"] == 1.0 and comparison["notes"] == []
    (row,) = comparison["rows"]
    assert row["difference"]["value"] == pytest.approx(0.5)
    assert (row["difference"]["gained"], row["difference"]["lost"]) == (2, 0)
    table = compare_table(found)
    assert "A = A (warmstart, iteration 0)" in table and "B - A +50.0" in table
    json.dumps(found)


def test_what_cannot_be_compared(run, tmp_path):
    one = {1.0: result("a", [1])}
    with pytest.raises(ConfigError, match="of one panel, got the game lists h .A. and other .B."):
        compare(one, {1.0: result("b", [1], game_list_hash="other")}, ("A", "B"))
    with pytest.raises(ConfigError, match=r"of one temperature, got \[1.0\] and \[0.3\]"):
        compare(one, {0.3: result("b", [1])}, ("A", "B"))
    for name, workdir in (("nothing", ""), ("99", str(run)), (str(tmp_path / "x"), "")):
        with pytest.raises(ConfigError, match="--compare must name results"):
            find_results(name, workdir)
    for text in ("{", "[]", '{"games": []}', '{"games": [{}]}'):
        path = tmp_path / "bad.json"
        path.write_text(text)
        with pytest.raises(ConfigError, match="bad.json must be a result of eval"):
            find_results(str(path))


def test_what_else_differs_is_noted():
    b = result("b", [1], seeds=[1, 2], versions={"jax": "2"})
    notes = compare({1.0: result("a", [1])}, {1.0: b}, ("A", "B"))["comparisons"][0]["notes"]
    assert notes == ["seeds [1] and [1, 2]: only common ones are paired", "jax 1 and 2"]


def test_a_torn_result_is_one_sentence(run):
    """As a full disk or a kill leaves it; found among others, and by its own name."""
    torn = run / "eval" / "iteration_00002-t1.json"
    torn.write_text((run / "eval" / "warmstart-t1.json").read_text()[:60])
    for name, workdir in ((str(run), ""), ("warmstart", str(run)), (str(torn), "")):
        with pytest.raises(ConfigError, match="iteration_00002-t1.json must be a result of eval"):
            find_results(name, workdir)
    with pytest.raises(ConfigError, match="must be a result of eval with games, got .'mode'"):
        find_results(str(run / "eval" / "stream-x-t1.json"))
