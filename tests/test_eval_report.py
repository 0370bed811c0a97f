"""The report of a made-up run: complete, self-contained, and safe with hostile text."""

import gzip
import html.parser
import json
import re

import numpy as np
import pytest

from evolving_rl_jax.eval import report

HOSTILE = "<script>alert(1)</script></details>{{ 7 * 7 }} \u00e9 \ud800"
SHARES = {"none": (0.2, 0.28), "own": (0.34, 0.72), "oracle": (0.7, 0.9), "misleading": (0.14, 0.2)}


def _evaluation(name, temperature, late, *, games=60, hash_="abc", seed=0):
    rng = np.random.default_rng([seed, late])
    rows = []
    for split, offset in (("heldout_types", -0.05), ("valid_unseen", 0.0)):
        for i in range(games):
            conditions = {
                c: {"won": bool(rng.random() < p[late] + offset), "status": "ok", "steps": 7}
                for c, p in SHARES.items()
            }
            row = {"id": f"{split}-{i:03d}", "hash": "h", "split": split, "type": "pick"}
            source = {"id": f"train-{i // 2}", "hash": "t"}
            rows.append({**row, "group": "maple", "conditions": conditions, "retrieved": source})
    return {
        "name": name,
        "iteration": 56 * late,
        "temperature": temperature,
        "seed": 1,
        "game_list_hash": hash_,
        "versions": {"jax": "0.10"},
        "games": rows,
        "summary": {},
    }


def _episode(won, text="put the mug in the fridge", turns=3):
    turn = {"observation": "You see a mug.", "output": "mug> take mug 1", "action": "take mug 1"}
    return {"task": "maple/1", "text": text, "won": won, "status": "ok", "turns": [
        {**turn, "valid": i > 0} for i in range(turns)
    ]}  # fmt: skip


def _skill(reward, **more):
    wins = [i < round(reward * 4) for i in range(4)]
    skill = {"raw": '{"name": "mug place"}', "name": "mug place", "description": "where mugs are"}
    skill |= {
        "valid": True,
        "reason": "",
        "reward": reward,
        "episodes": [_episode(w) for w in wins],
    }
    return {**skill, **more}


def _source(i, rewards, text="find the mug"):
    bad = _skill(0.0) | {"valid": False, "reason": "no JSON object", "reward": None, "raw": HOSTILE}
    skills = [*map(_skill, rewards), bad]
    return {"iteration": i, "source": _episode(False, text), "skills": skills}


def _write(folder, path, data):
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(json.dumps(data))


def _write_episodes(folder, iteration, sources):
    (folder / "episodes").mkdir(exist_ok=True)
    path = folder / "episodes" / f"iteration_{iteration}.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write("".join(json.dumps(source) + "\n" for source in sources))


def make_run(folder, iterations=56):
    """A run folder with everything in it."""
    rng = np.random.default_rng(0)
    _write(
        folder,
        "config.json",
        {"seed": 3, "env": {"name": "alfworld"}, "algorithm": {"arm": "joint"}},
    )
    lines = []
    for i in range(iterations):
        grown = i / iterations
        record = {"iteration": i, "rollout/win_rate": 0.3 + 0.4 * grown + 0.05 * rng.normal()}
        record |= {"rollout/source_success": 0.25 + 0.1 * grown + 0.05 * rng.normal()}
        record |= {"rollout/fact_stated_when_seen": 0.36 + 0.5 * grown, "train/loss": rng.normal()}
        record |= {"train/kl": None if i == 7 else 0.01 * grown, "rate/episodes_per_s": 56.0}
        record |= {"time/environment": 0.4, "time/prefill": 0.6, "time/decode": 1.4}
        record |= {"time/train": 1.6, "time/other": 0.1, "time/total": 4.1}
        lines.append(json.dumps(record) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))
    for temperature in (1.0, 0.3):
        for late, name in enumerate(("warmstart", "final")):
            result = _evaluation(name, temperature, late)
            _write(folder, f"eval/{name}-t{temperature}.json", result)
    middle = {**_evaluation("panel", 1.0, 1, games=10), "iteration": 28}
    _write(folder, "eval/iteration_28-t1.0.json", middle)
    _write_episodes(folder, 9, [_source(9, [0.25, 0.5]), _source(9, [0.5, 0.5])])
    _write_episodes(folder, 10, [_source(10, [0.0, 1.0, 0.5], HOSTILE)])
    return folder


class _Page(html.parser.HTMLParser):
    """Tags, visible text and addresses of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.stack, self.visible = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.stack.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href")]

    def handle_endtag(self, tag):
        while self.stack and self.stack.pop() != tag:
            pass

    def handle_data(self, data):
        if not self.stack or self.stack[-1] not in ("script", "style"):
            self.visible += data


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("run"))
    path = report.write_report(folder, title="A & B")
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


def test_page_stands_alone(page):
    parsed = _Page(page)
    assert parsed.addresses == [] and "link" not in parsed.tags and "img" not in parsed.tags
    assert parsed.tags.count("script") == 3  # plotly once, the figures, the drawing
    assert "default-src 'none'" in page and "prefers-color-scheme: dark" in page


def test_page_shows_every_part(page):
    text = re.sub(r"\s+", " ", _Page(page).visible)
    for part in ("A & B", "joint", "56 iterations", "points of success", "Temperature 0.3"):
        assert part in text
    for part in ("own skill", "misleading skill", "unseen households", "Where the time went"):
        assert part in text
    for part in ("Iteration 9", "Iteration 10", "Best skill", "Worst skill", "Rejected skill"):
        assert part in text
    assert "environment 9.8 %" in text and "no JSON object" in text
    assert text.index("unseen households") < text.index("held-out task types")


def test_hostile_text_is_shown_and_never_run(page):
    assert "<script>alert" not in page
    assert "<script>alert(1)</script></details>{{ 7 * 7 }} é ?" in _Page(page).visible


def test_figures_hold_the_metrics(page):
    raw = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.S)
    figures = json.loads(raw[1])
    names = {trace["name"] for figure in figures for trace in figure["traces"]}
    assert {
        "rollout/win_rate",
        "train/kl",
        "rate/episodes_per_s",
        "decode",
        "moving average",
    } <= names
    assert "valid_unseen, own skill" in names and not {"iteration", "total"} & names
    (kl,) = [t for f in figures for t in f["traces"] if t["name"] == "train/kl"]
    assert kl["y"][7] is None and kl["x"] == list(range(56))


def test_console_table_counts_the_games(tmp_path):
    folder = make_run(tmp_path)
    table = report.before_after_table(folder)
    blocks = table.split("\n\n")
    assert [b.splitlines()[0].split()[-1] for b in blocks] == ["1", "0.3"]
    row = next(x for x in blocks[0].splitlines() if x.startswith("valid_unseen   own skill"))
    before, after = (_evaluation("", 1.0, late)["games"] for late in (0, 1))
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
    (folder / "eval" / "final-t1.0.json").write_text(
        '{"name": "final", "temperature": 1.0, "games": [{}]}'
    )
    _write(folder, "eval/other.json", ["not", "an", "object"])
    episodes = folder / "episodes" / "iteration_10.jsonl.gz"
    episodes.write_bytes(episodes.read_bytes()[:-20])
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"iteration"')
    text = _Page(report.write_report(folder).read_text()).visible
    for name in ("config.json", "eval/final-t1.0.json", "eval/other.json", "iteration_10.jsonl.gz"):
        assert f"{name} cannot be read" in text
    assert "The trained policy has no evaluation at temperature 1" in text
    assert "3 iterations" in text and "Iteration 9" in text


def test_other_game_lists_are_told(tmp_path):
    _write(tmp_path, "eval/warmstart-t1.0.json", _evaluation("warmstart", 1.0, 0))
    _write(tmp_path, "eval/final-t1.0.json", _evaluation("final", 1.0, 1, games=20, hash_="x"))
    table = report.before_after_table(tmp_path)
    assert "different lists of games" in table
    assert re.search(r"valid_unseen +own skill +20 ", table)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="workdir must be a run folder, got .*nowhere"):
        report.write_report(tmp_path / "nowhere")
