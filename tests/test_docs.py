"""The documentation against the code: metric and field names, values, links, commands, examples."""

import dataclasses
import json
import pathlib
import re
import shlex
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from evolving_rl_jax import config, types
from evolving_rl_jax.cli import main as cli
from evolving_rl_jax.data.curriculum import Curriculum
from evolving_rl_jax.eval.games import PanelGame
from evolving_rl_jax.eval.panel import Panel
from evolving_rl_jax.eval.results import write_result
from evolving_rl_jax.generate import Stats
from evolving_rl_jax.record import figures as records
from evolving_rl_jax.record.episodes import episode_records
from evolving_rl_jax.record.metrics import RATES
from evolving_rl_jax.rollout.evolve import Candidate, Experience, Source
from evolving_rl_jax.skills import Retriever
from evolving_rl_jax.skills.bank import SCHEMA_VERSION, Bank, SkillRecord
from evolving_rl_jax.skills.schema import Skill
from evolving_rl_jax.train.replay import REPLAY_FIGURES
from evolving_rl_jax.update.given import GIVEN_METRICS
from evolving_rl_jax.update.step import ARM_WEIGHTS, STEP_METRICS

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
METRICS = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _section(heading: str) -> str:
    """The text under a second-level heading of docs/metrics.md."""
    return re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", METRICS, re.M | re.S)[1]


def _documented(heading: str) -> set[str]:
    return set(re.findall(r"^\| `([^`]+)` \|", _section(heading), re.M))


def _leaves(value, path: str = "") -> set[str]:
    """Paths of the leaves of JSON data; what is named by data is called SPLIT, CONDITION, TYPE."""
    if isinstance(value, list):
        return set().union(*(_leaves(v, f"{path}[]") for v in value))
    if not isinstance(value, dict) or path == "versions":
        return {path}
    free = {"summary": "SPLIT", "summary.SPLIT": "CONDITION", "games[].conditions": "CONDITION"}
    free["summary.SPLIT.CONDITION.by_type"] = "TYPE"
    return set().union(
        *(_leaves(v, f"{path}.{free.get(path, k)}".lstrip(".")) for k, v in value.items())
    )


# -- one small experience, enough for every record ----------------------------------------------


def _task(name: str) -> types.Task:
    meta = {"object": "mug", "place": "drawer 1"}
    return types.Task(
        name, "alfworld", "valid_unseen", "t", "find mug", "", name, "home", meta=meta
    )


def _episode(task: types.Task) -> types.Episode:
    sample = types.Sample(*(np.ones(2, np.float32) for _ in range(4)))
    seen = "The drawer 1 is open. In it, you see a mug 1."
    return types.Episode(task, [types.Turn(seen, "mug> look", "look", True)], True, "ok", [sample])


def _task_by_object(name: str) -> types.Task:
    """One of an index by object."""
    task = _task(name)
    kept = {"kept": ["drawer 1"], "places": ["drawer 1"], "target": "shelf", "usual": ["drawer"]}
    return dataclasses.replace(task, meta={**task.meta, **kept})


def _experience(_task=_task, said="the mug is in drawer 1") -> Experience:
    episode = _episode(_task("b"))
    skill = Skill("find mug", said)
    written = types.Sample(*(np.ones(3, np.float32) for _ in range(4)))  # the source's and one more
    candidate = Candidate("{}", written, skill, "", True, skill.description)
    retrieved, played = [_task("b")], {(0, 0, 0): episode}
    source = Source(_task("a"), _episode(_task("a")), [candidate], retrieved, played)
    return Experience([source], np.ones((1, 1, 1, 1)), np.ones((1, 1, 1, 1)), np.ones((1, 1)))


# -- names -----------------------------------------------------------------------------------------


def test_metrics_page_names_every_metric_and_no_other():
    pool = SimpleNamespace(respawns=0, quarantined={})
    driver = SimpleNamespace(
        pool=pool, environment_seconds=0.0, finished=0, reused=Counter(), extracted=Counter()
    )
    logged = {"iteration", *(f"train/{name}" for name in STEP_METRICS), *RATES.values()}
    logged |= {f"train/{name}" for name in GIVEN_METRICS} | set(REPLAY_FIGURES)
    logged |= set(Curriculum([_task("a")], by="group", rate=0.5, temperature=1.0, seed=0).figures())
    logged |= {
        f"rollout/{kind}_{what}" for kind in ("free", "bank") for what in ("plays", "win_rate")
    }
    logged |= {"bank/skills", "bank/value", "bank/uses"}
    logged |= set(records.rollout_figures(_experience()))
    parts_paid = dataclasses.replace(_experience(), wins=np.full((1, 1, 1, 1), 0.5))
    logged |= set(records.rollout_figures(parts_paid))
    for said in ("the mug is in drawer 1", "the mug is at some drawer"):
        logged |= set(records.rollout_figures(_experience(_task_by_object, said)))
    times = {"overlapped": 0.0, "trained": 1.0, "total": 2.0}
    logged |= set(records.cost_figures(driver, Stats(), lag=0, **times))
    assert _documented("metrics.jsonl") == logged


def test_metrics_page_names_every_field_of_a_panel_file(tmp_path):
    task, other, source = _task("a"), _task("d"), _task("b")
    copy = dataclasses.replace(_task("c"), content_hash="a")
    panel = Panel([task, other], Retriever([source, copy]), None, 100, training_tasks=[copy])
    _, nothing = panel.play(SimpleNamespace(run=lambda progress, stop: None), ())
    assert nothing == {"sources": 0, "source_failures": 0, "extractions": 0}
    figures = records.SourceFigures.of([_episode(source)], _experience().sources[0].candidates)
    figures = figures.figures()
    failed = dataclasses.replace(_episode(copy), status="timeout")
    episodes = {"none": _episode(task), "own": _episode(task)}
    games = [
        PanelGame(task, source, episodes, similarity=1.0, source_episode=_episode(source)),
        PanelGame(other, copy, episodes, similarity=1.0, source_episode=failed),
    ]
    settings = {"name": "final", "iteration": 1, "temperature": 1.0, "seed": 0, "figures": figures}
    data = {"environment": "", "from": "", "all_games": 1, "all_games_hash": ""}
    path = tmp_path / "final-t1.json"
    settings |= {"data": data, "batching": {"dtype": "float32", "independent_rows": 0}}
    settings |= {"skills_from": {"name": "final", "iteration": 1}}
    write_result(path, panel, games, conditions=("none", "own"), **settings)
    written = _leaves(json.loads(path.read_text()))
    assert _documented("eval/NAME-tTEMPERATURE.json") == written


def test_metrics_page_names_every_field_of_an_episode_file():
    tokenizer = SimpleNamespace(decode=lambda ids: "x" * len(ids))
    (record,) = episode_records(_experience(), 0, config.default_config(), tokenizer)
    assert _documented("episodes/iteration_XXXXX.jsonl.gz") == _leaves(record)


def test_metrics_page_names_every_field_of_the_bank(tmp_path):
    bank = Bank(tmp_path / "bank.jsonl")
    bank.append([SkillRecord("it00000-g000-n0", 0, "a", "b")])
    written = json.loads(bank.path.read_text())
    assert written["schema_version"] == SCHEMA_VERSION
    fields = {field.name for field in dataclasses.fields(SkillRecord)}
    assert set(written) == {"schema_version", *fields}
    assert _documented("skills/bank.jsonl") == set(written)


def test_algorithm_page_names_every_arm():
    page = (ROOT / "docs" / "algorithm.md").read_text(encoding="utf-8")
    arms = re.search(r"^## Arms\n(.*?)^## ", page, re.M | re.S)[1]
    assert set(re.findall(r"^\| `(\w+)` \|", arms, re.M)) == set(ARM_WEIGHTS) == set(config.ARMS)


def test_readme_has_the_axis_legend_of_types():
    legend = re.search(r"::\n\n(.*?)\n\n", types.__doc__, re.S)[1]
    for line in legend.splitlines():
        assert line.strip() in README


# -- configuration ---------------------------------------------------------------------------------


def _lookup(node, key: str):
    for part in key.split("."):
        node = node[part]  # KeyError names what the page invented
    return node


@pytest.mark.parametrize("name", NAMES)
def test_configuration_keys_on_the_page_exist(name):
    defaults = config.default_config()
    groups = "|".join(key for key in defaults if hasattr(defaults[key], "keys"))
    text = (ROOT / name).read_text(encoding="utf-8")
    for key in re.findall(rf"`(?:config\.)?((?:{groups})(?:\.\w+)+)`", text):
        _lookup(defaults, key)
    for key in set(re.findall(r"`config\.([\w.]+)`", text)) - {"json", "py"}:
        _lookup(defaults, key)


def test_values_on_the_algorithm_page_are_those_of_the_configs():
    page = (ROOT / "docs" / "algorithm.md").read_text(encoding="utf-8")
    table = re.search(r"^## Values\n(.*?)^## ", page, re.M | re.S)[1]
    rows = re.findall(r"^\| `([\w.]+)`[^|]*" + r"\| (\S+) " * 4 + r"\|", table, re.M)
    assert len(rows) > 20
    names = ("alfworld_quickstart", "mind2web_qwen2_5_7b", "mind2web_quickstart")
    configs = [config.load_config(str(ROOT / "configs" / f"{name}.py")) for name in names]
    for key, *values in rows:
        for value, known in zip(values, [config.default_config(), *configs], strict=True):
            assert float(value) == _lookup(known, key), key


# -- links, paths, commands, examples --------------------------------------------------------------


def _anchors(page: pathlib.Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("name", NAMES)
def test_relative_links_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://)([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        page = (ROOT / name).parent / path if path else ROOT / name
        assert page.exists(), f"{name} links {target}"
        assert not anchor or anchor in _anchors(page), f"{name} links {target}"


@pytest.mark.parametrize("name", NAMES)
def test_files_on_the_page_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for path in re.findall(r"`((?:evolving_rl_jax|configs|tests|docs)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), f"{name} names {path}"


def test_file_map_of_the_readme_is_complete():
    block = re.search(r"^## Files\n+```\n(.*?)```", README, re.M | re.S)[1]
    listed = [line.split()[0].rstrip("/") for line in block.splitlines()]
    package = ROOT / "evolving_rl_jax"
    inside = listed[listed.index(package.name) + 1 :]
    for path in listed:
        assert ((package if path in inside else ROOT) / path).exists(), path
    folders = {p.parent.name for p in package.glob("*/__init__.py")}
    assert folders <= set(inside)


def _commands() -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)```", README, re.M | re.S)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.mark.parametrize("command", _commands())
def test_commands_of_the_readme_are_accepted(command):
    program, *arguments = shlex.split(command)
    if program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{arguments[0]}:", makefile, re.M)
    elif program == "evolving-rl":
        overrides = cli.take_overrides(arguments)
        args = cli.parser().parse_args(arguments)
        assert args.command in cli.COMMANDS
        if args.command == "train":
            config.load_config(str(ROOT / args.config), overrides)
    else:
        assert program == ".venv/bin/python"
        extras = re.search(r"\.\[([\w,]+)\]", command)[1].split(",")
        setup = (ROOT / "setup.py").read_text(encoding="utf-8")
        assert all(f'"{extra}": ' in setup for extra in extras)


@pytest.mark.parametrize("name", NAMES)
def test_python_on_the_page_runs(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)```", text, re.M | re.S)
    values: dict = {}
    exec(compile("\n".join(blocks), name, "exec"), values)
    assert np.isfinite(values.get("loss", 0.0))
