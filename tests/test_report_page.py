"""The report of made-up runs: complete, self-contained, bounded, and safe with hostile text."""

import base64
import gzip
import html.parser
import json
import pathlib
import re

import numpy as np
import pytest
from report_runs import HOSTILE, make_run, panel, source, write_episodes, write_json

from evolving_rl_jax.report import charts, viewer
from evolving_rl_jax.report import page as report
from evolving_rl_jax.report import results as report_results
from evolving_rl_jax.report import skills as report_skills
from evolving_rl_jax.report.readers import Group, Run, groups, read_run
from evolving_rl_jax.train.collapse import Breach, Collapse, CollapseLog


class _Page(html.parser.HTMLParser):
    """Tags, visible text and addresses of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.stack, self.visible = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("input", "meta", "br", "link", "img"):
            self.stack.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href") and not v.startswith("#")]

    def handle_endtag(self, tag):
        while self.stack and self.stack.pop() != tag:
            pass

    def handle_data(self, data):
        if not self.stack or self.stack[-1] not in ("script", "style"):
            self.visible += data


def _data(page):
    raw = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(raw[1])


def _unpack(text):
    return json.loads(gzip.decompress(base64.b64decode(text)))


def _chunks(page):
    found = re.findall(r'<script type="text/plain" class="chunk">(.*?)</script>', page, re.S)
    return [_unpack(text) for text in found]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("run"))
    path = report.write_report(folder, title="A & B")
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


# -- the page ------------------------------------------------------------------------------------


def test_page_stands_alone(page):
    parsed = _Page(page)
    assert parsed.addresses == [] and "link" not in parsed.tags and "img" not in parsed.tags
    assert "default-src 'none'" in page and "prefers-color-scheme: dark" in page
    assert len(page) < 3_000_000


def test_page_shows_every_part(page):
    text = re.sub(r"\s+", " ", _Page(page).visible)
    for part in ("A & B", "joint", "56 iterations", "points of success", "temperature 0.3"):
        assert part in text
    for part in ("own skill", "misleading skill", "unseen households", "Where the time went"):
        assert part in text
    for part in ("Episodes", "Skill bank", "Leak report", "no leak", "pick_and_place_simple"):
        assert part in text
    assert "environment 9.8 %" in text and "24 of 56 logged iterations" in text
    assert text.index("unseen households") < text.index("held-out task types")


def test_hostile_text_never_becomes_markup(page):
    assert page.count("window.hacked") == 0 or "<script>window.hacked" not in page
    assert "onerror=window" not in re.sub(r"<script.*?</script>", "", page, flags=re.S)
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", page, re.S)
    data = next(s for s in scripts if s.startswith('{"figures"'))
    assert not set(data) & set("<>&\u2028\u2029")
    entry = _data(page)["index"][-2]
    assert entry["text"].endswith(HOSTILE)
    assert _chunks(page)[-1][0]["source"]["turns"][1]["observation"] == HOSTILE


def test_programs_of_the_page_cannot_end_their_element():
    for code in report.chart_library():
        assert "</script" not in str(report._script(code)).lower()
    assert "<!--" not in str(report._script("if (a<!--b) '</script>'"))


def test_figures_hold_the_metrics(page):
    figures = _data(page)["figures"]
    by_name = {f.get("name"): f for f in figures}
    assert {"rollout/win_rate", "train/kl", "rate/episodes_per_s"} <= set(by_name)
    assert "iteration" not in by_name and not any(n and n.startswith("time/") for n in by_name)
    (kl,) = by_name["train/kl"]["series"]
    assert kl["raw"][7] is None and kl["x"] == list(range(56))
    stacked = next(f for f in figures if f.get("stacked"))
    assert [s["label"] for s in stacked["series"]][:3] == ["environment", "prefill", "decode"]
    assert any(s["label"] == "valid_unseen, own skill" for f in figures for s in f["series"])


# -- several runs ----------------------------------------------------------------------------------


def test_runs_that_differ_in_the_seed_are_one_curve(tmp_path):
    runs = [make_run(tmp_path / f"joint-{i}", 30, seed=i, logged=[0, 29]) for i in range(3)]
    runs.append(make_run(tmp_path / "grpo-0", 30, arm="grpo", seed=0, gain=0.1, logged=[0, 29]))
    found = groups([read_run(folder) for folder in runs])
    assert [(g.label, g.seeds) for g in found] == [("joint", [0, 1, 2]), ("grpo", [0])]

    figures = []
    charts.curves(found, figures)
    figure = next(f for f in figures if f["name"] == "rollout/win_rate")
    joint, grpo = figure["series"]
    table = np.array(
        [[r["rollout/win_rate"] for r in read_run(f).records] for f in runs[:3]]
    )  # [seeds, iterations]
    means = np.array([[row[max(i - 2, 0) : i + 3].mean() for i in range(30)] for row in table])
    np.testing.assert_allclose(joint["y"], means.mean(0), rtol=1e-4)
    np.testing.assert_allclose(joint["low"], means.min(0), rtol=1e-4)
    np.testing.assert_allclose(joint["high"], means.max(0), rtol=1e-4)
    assert "raw" in grpo and "raw" not in joint

    path = report.write_report(*runs, out=tmp_path / "all.html")
    text = re.sub(r"\s+", " ", _Page(path.read_text(encoding="utf-8")).visible)
    assert "joint 3 runs, seeds 0, 1, 2" in text and "Paired difference to joint, points" in text
    assert not (runs[0] / "report.html").exists()


def test_what_skills_state_is_one_picture_of_all_arms():
    def arm(label, kind, number):
        records = [
            {
                "iteration": i,
                "skill/states_kind": k,
                "skill/states_number": n,
                "skill/kind_right": 1.0,
            }
            for i, (k, n) in enumerate(zip(kind, number, strict=True))
        ]
        return Group(label, [Run(pathlib.Path(label), {}, records, [], {}, [], [])])

    found = [arm("joint", (0.5, 0.9), (0.5, 0.1)), arm("grpo", (0.4, 0.4), (0.3, 0.3))]
    figures = []
    (section,) = charts.curves(found, figures)
    first = figures[section["charts"][0]["figure"]]
    assert first["title"] == "what skills state: states kind (solid), states number (dotted)"
    lines = {s["label"]: (s["color"], s["dash"], s["y"]) for s in first["series"]}
    assert lines["joint, states kind"] == (0, "solid", [0.5, 0.9])
    assert lines["joint, states number"] == (0, "dotted", [0.5, 0.1])
    assert lines["grpo, states number"] == (1, "dotted", [0.3, 0.3]) and len(lines) == 4
    assert "skill/kind_right" in {f["name"] for f in figures}


def test_a_short_run_is_not_smoothed(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"iteration": 0, "a/b": 1}\n{"iteration": 1, "a/b": 3}\n'
    )
    figures = []
    charts.curves(groups([read_run(tmp_path)]), figures)
    assert figures[0]["series"] == [{"label": tmp_path.name, "color": 0, "x": [0, 1], "y": [1, 3]}]


def test_success_over_seeds_is_their_mean_and_wider_than_one_seed(tmp_path):
    won = [panel("final", 1.0, 1, games=200, seed=s) for s in range(4)]
    for result, share in zip(won, (0.2, 0.4, 0.6, 0.8), strict=True):
        for i, game in enumerate(result["games"]):
            game["conditions"]["none"]["won"] = (i * 7919) % 200 < share * 200
    column = ("valid_unseen", "none")
    one, four = report_results.success(won[:1], column), report_results.success(won, column)
    games = [
        [g["conditions"]["none"]["won"] for g in r["games"] if g["split"] == column[0]] for r in won
    ]
    assert four["success"] == pytest.approx(np.mean(games)) and four["n"] == 200
    assert four["high"] - four["low"] > 2 * (one["high"] - one["low"])
    # An independent loop: draw seeds and games with replacement, average.
    rng, table = np.random.default_rng(1), np.array(games, float)
    draws = [
        table[np.ix_(rng.integers(4, size=4), rng.integers(200, size=200))].mean()
        for _ in range(3000)
    ]
    assert np.quantile(draws, [0.025, 0.975]) == pytest.approx(
        [four["low"], four["high"]], abs=0.02
    )


def test_groups_with_other_settings_are_named_by_them(tmp_path):
    runs = [make_run(tmp_path / name, 3) for name in ("a", "b", "c")]
    for run, rate in zip(runs, (1e-6, 1e-4, 1e-4), strict=True):
        config = json.loads((run / "config.json").read_text())
        config["optimizer"]["learning_rate"] = rate
        config["env"]["num_workers"] = int(rate * 1e6)  # where and how fast makes no difference
        write_json(run, "config.json", config)
    labels = [g.label for g in groups([read_run(run) for run in runs])]
    assert labels == ["joint, learning_rate=1e-06", "joint, learning_rate=0.0001"]


# -- leaks, skills, episodes -------------------------------------------------------------------------


def test_a_planted_copy_is_a_leak(tmp_path):
    result = panel("final", 1.0, 1, games=5)
    result["games"][0]["retrieved"] = {"id": "elsewhere", "hash": result["games"][3]["hash"]}
    result["games"][1]["retrieved"] = {"id": result["games"][4]["id"], "hash": "new"}
    write_json(tmp_path, "eval/final-t1.json", result)
    (row,) = report_results.leak_report([read_run(tmp_path)])
    assert row["leaked"] == [result["games"][0]["id"], result["games"][1]["id"]]
    text = re.sub(r"\s+", " ", _Page(report.write_report(tmp_path).read_text()).visible)
    assert "2 leaked heldout_types-000, heldout_types-001" in text


def test_what_was_retrieved_is_shown_with_its_shares(tmp_path):
    result = panel("final", 1.0, 1, games=5)
    write_json(tmp_path, "eval/warmstart-t1.json", {**result, "name": "warmstart"})  # without any
    result["leaks"] = {"alike": {"same_type": 0.987, "same_group": 0.219}}
    write_json(tmp_path, "eval/final-t1.json", result)
    records = [{"iteration": i, "retrieval/same_group": 0.2 + i / 10} for i in range(3)]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "metrics.jsonl").write_text(lines, encoding="utf-8")
    page = report.write_report(tmp_path).read_text(encoding="utf-8")
    rows = re.findall(r"<tr><th scope=\"row\">(.*?)</tr>", page, re.S)
    cells = [re.findall(r">([^<>]+)</t[dh]>", f">{row}") for row in rows]
    assert ["final-t1.json", "10", "3", "–", "–", "–", "98.7", "–", "21.9", "0"] in cells
    assert ["warmstart-t1.json", "10", "3", *"––––––", "0"] in cells
    (curve,) = [f for f in _data(page)["figures"] if f.get("name") == "retrieval/same_group"]
    assert curve["series"][0]["y"] == pytest.approx([0.2, 0.3, 0.4])


def test_skills_are_sorted_by_utility_then_reward(tmp_path):
    run = read_run(make_run(tmp_path, 10))
    cards = report_skills.cards([run])
    utilities = [c["utility"] for c in cards]
    measured = [u for u in utilities if u is not None]
    assert measured == sorted(measured, reverse=True) and len(measured) == 10
    assert utilities[10:] == [None] * 10
    (figures,) = report_skills.figures([run])
    assert figures["extractions"] == 30 and figures["reasons"] == [("no JSON object", 10)]


def test_embedded_iterations_are_spread_and_hold_both_ends(tmp_path):
    for i in range(101):
        write_episodes(tmp_path, i, [source(i, 0)])
    data = viewer.episodes([read_run(tmp_path)])
    (facts,) = data["iterations"]
    assert facts["logged"] == 101 and len(facts["shown"]) == viewer.MAX_ITERATIONS
    assert facts["shown"][0] == 0 and facts["shown"][-1] == 100
    assert set(np.diff(facts["shown"])) <= {4, 5}
    assert [e["iteration"] for e in data["index"]] == facts["shown"]


def test_long_episodes_are_cut_to_the_size_of_a_page(tmp_path, monkeypatch):
    for i in range(6):
        write_episodes(tmp_path, i, [source(i, g, turns=20) for g in range(8)])
    monkeypatch.setattr(viewer, "MAX_BYTES", 120_000)
    data = viewer.episodes([read_run(tmp_path)])
    (facts,) = data["iterations"]
    assert facts["shown"] == [0, 5] and facts["cut"] > 0
    assert sum(map(len, data["chunks"])) <= 120_000
    assert len(data["index"]) == 16 - facts["cut"]


# -- the console, and what is missing ----------------------------------------------------------------


def test_console_table_counts_the_games(tmp_path):
    folder = make_run(tmp_path, 3)
    table = report.before_after_table(folder)
    blocks = table.split("\n\n")
    assert [b.splitlines()[0].split()[-1] for b in blocks] == ["1", "0.3"]
    row = next(x for x in blocks[0].splitlines() if x.startswith("valid_unseen   own skill"))
    before, after = (panel("", 1.0, late, seed=3)["games"] for late in (0, 1))
    wins = [
        [g["conditions"]["own"]["won"] for g in games if g["split"] == "valid_unseen"]
        for games in (before, after)
    ]
    first, second = np.mean(wins, axis=1) * 100
    assert f"  60     {first:.1f} [" in row and f"  {second:.1f} [" in row
    assert f"{second - first:+.1f} [" in row
    assert len(blocks[0].splitlines()) == 2 + 8


def test_empty_folder_says_what_is_missing(tmp_path):
    text = _Page(report.write_report(tmp_path).read_text()).visible
    for name in (
        "config.json is missing",
        "metrics.jsonl is missing",
        "eval/ has",
        "episodes/ has",
    ):
        assert name in text
    assert "eval/ has no result" in report.before_after_table(tmp_path)


def test_broken_files_become_sentences(tmp_path):
    folder = make_run(tmp_path, iterations=3)
    (folder / "config.json").write_text("[1")
    (folder / "eval" / "final-t1.json").write_text(
        '{"name": "final", "temperature": 1.0, "games": [{}]}'
    )
    write_json(folder, "eval/other.json", ["not", "an", "object"])
    episodes = folder / "episodes" / "iteration_00002.jsonl.gz"
    episodes.write_bytes(episodes.read_bytes()[:-20])
    (folder / "skills" / "bank.jsonl").write_text('{"a": 1}\n{"b": 2}\n')
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"iteration"')
    text = _Page(report.write_report(folder).read_text()).visible
    names = ("config.json", "eval/final-t1.json", "eval/other.json", "iteration_00002.jsonl.gz")
    for name in (*names, "skills/bank.jsonl"):
        assert f"{name} cannot be read" in text
    assert "The trained policy has no evaluation at temperature 1" in text
    assert "3 iterations" in text and "2 of 3 logged iterations" in text


def test_collapses_are_the_first_thing_told(tmp_path):
    folder = make_run(tmp_path, iterations=3)
    (folder / "config.json").write_text("[1")
    breach = Breach("rollout/skill_valid", 0.125, "min_skill_valid", 0.2, 10)
    log = CollapseLog(folder, resume_from=0)
    for iteration, action, restored in (
        (0, "restore_best", 0),
        (1, "stop", None),
        (2, "warn", None),
    ):
        log.append(Collapse(iteration, action, (breach,)), restored)
    text = _Page(report.write_report(folder).read_text()).visible
    limit = "rollout/skill_valid = 0.125 is below config.collapse.min_skill_valid = 0.2"
    ends = ("run went back to the policy it began with", "run was stopped", "run went on")
    told = [
        f"Collapse, iteration {i}: {limit} for 10 iterations in a row; the {end}."
        for i, end in enumerate(ends, 1)
    ]
    places = [text.index(sentence) for sentence in [*told, "config.json cannot be read"]]
    assert places == sorted(places)
    (folder / "collapses.jsonl").open("a").write('{"iterat')  # torn by a kill
    assert report.write_report(folder).read_text().count("Collapse, iteration") == 3
    (folder / "collapses.jsonl").write_text('{"iteration": 3}\n')
    assert "collapses.jsonl cannot be read" in report.write_report(folder).read_text()


def test_other_game_lists_are_told(tmp_path):
    write_json(tmp_path, "eval/warmstart-t1.json", panel("warmstart", 1.0, 0))
    write_json(tmp_path, "eval/final-t1.json", panel("final", 1.0, 1, games=20, hash_="x"))
    table = report.before_after_table(tmp_path)
    assert "different lists of games" in table
    assert re.search(r"valid_unseen +own skill +20 ", table)


def test_the_p_value_of_the_page_knows_that_games_share_a_skill(tmp_path):
    """Sixteen games won more, all with one skill: McNemar alone would say 3e-5."""
    for late, name in enumerate(("warmstart", "final")):
        result = panel(name, 1.0, late, games=16, conditions=("own",))
        for game in result["games"]:
            game["conditions"]["own"]["won"] = bool(late)
            game["retrieved"] = {"id": "the one source", "hash": "h"}
        write_json(tmp_path, f"eval/{name}-t1.json", result)
    (comparison,) = report_results.comparisons(read_run(tmp_path), [])
    assert {row["difference"]["p"] for row in comparison["rows"]} == {2 / 2**16}
    page = report.write_report(tmp_path).read_text(encoding="utf-8")
    assert re.findall(r'<td class="soft p">(.*?)</td>', page) == ["1.000", "1.000"]
    assert "exact McNemar test, which takes games as independent" not in page


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="workdir must be a run folder, got .*nowhere"):
        report.write_report(tmp_path / "nowhere")
