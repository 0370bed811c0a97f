"""Another policy with our skills: what it gets, what is kept, and the command against a bad server."""

import itertools
import json
import pathlib
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chat_server import GOOD, serve
from doubles import FakeEngine, FakePool, compact_prompts, make_task

from evolving_rl_jax.cli.main import main
from evolving_rl_jax.config import load_config, to_json
from evolving_rl_jax.eval.journal import Journal
from evolving_rl_jax.eval.transfer import play as transfer
from evolving_rl_jax.rollout.episode import Driver, PlaySettings
from evolving_rl_jax.skills import Bank, SkillRecord, SkillRetriever, render_skill
from evolving_rl_jax.types import ENV_ERROR

ROOT = pathlib.Path(__file__).parents[1]
PROMPTS = compact_prompts()
SETTINGS = PlaySettings(
    max_turn_tokens=12, max_skill_tokens=60, max_steps=6, temperature=1.0, top_p=1.0, top_k=0
)
PANEL = [make_task(f"p{i}", split="panel", text=f"find mug at house{i % 3}") for i in range(6)]


def skill_record(name, task, description, **changes):
    skill = {"name": name, "description": description}
    facts = {"source_task_hash": task.content_hash, "skill": skill}
    return SkillRecord(name, 0, task.id, **{**facts, **changes})


def a_bank(path, good=True, extra=()):
    bank = Bank(path)
    sources = [make_task(f"s{i}", text=f"put mug at house{i}") for i in range(3)]
    said = "good" if good else "bad"
    bank.append([skill_record(f"{said}{i}", t, f"{said} advice") for i, t in enumerate(sources)])
    bank.append(extra)
    return bank, sources


class Advised(FakeEngine):
    """Wins with good advice in its prompt."""

    def __init__(self):
        super().__init__(PROMPTS.tokenizer, None)

    def _generate(self, session, limit, room):
        good = "good advice" in self.tokenizer.decode(session.tokens)
        self.speak = lambda e, t: "mug> win" if good else "mug> lose"
        return super()._generate(session, limit, room)


class World:
    """A panel, two banks, and plays of them."""

    def __init__(self, folder, extra=()):
        self.folder = folder
        ours, sources = a_bank(folder / "ours.jsonl", extra=extra)
        other, _ = a_bank(folder / "other.jsonl", good=False)
        make = lambda bank: transfer.bank_in_play(bank, PANEL, sources, SkillRetriever())  # noqa: E731
        self.banks = {"ours": make(ours), "other": make(other)}
        self.played = []

    def play(self, fail=None, seeds=(1, 2), stop_after=None):
        journal = Journal(self.folder / "plays.jsonl", {"temperature": 1.0})

        def driver(seed):
            pool = FakePool(fail)
            self.played.append(pool.tasks)
            return Driver(Advised(), pool, PROMPTS, SETTINGS, iteration=seed)

        def progress(n):
            if stop_after is not None and n >= stop_after:
                raise KeyboardInterrupt

        def render(records):
            return " ".join(r.as_skill().description for r in records)

        try:
            transfer.play_transfer(
                driver, PANEL, self.banks, journal, seeds=seeds, render=render, progress=progress
            )
        except KeyboardInterrupt:
            pass
        return journal

    def result(self, journal, seeds=(1, 2)):
        facts = {"policy": "somebody"}
        return transfer.transfer_result(journal, PANEL, self.banks, seeds=seeds, facts=facts)


def test_three_conditions_are_paired(tmp_path):
    world = World(tmp_path)
    journal = world.play()
    result = world.result(journal)
    success = {r["condition"]: r["success"] for r in result["summary"]}
    assert success == {"none": 0.0, "ours": 1.0, "other": 0.0}
    assert all(r["n"] == 12 for r in result["summary"]) and result["missing"] == 0
    pairs = {(r["baseline"], r["condition"]): r["value"] for r in result["paired"]}
    assert pairs == {("none", "ours"): 1.0, ("none", "other"): 0.0, ("other", "ours"): 1.0}
    for play in result["plays"]:
        house = next(t for t in PANEL if t.id == play["id"]).text[-1]
        expected = {"none": [], "ours": [f"good{house}"], "other": [f"bad{house}"]}
        assert [s["id"] for s in play["skills"]] == expected[play["condition"]]
    assert result["leaks"] == {"left_out": {"ours": [], "other": []}, "violations": []}
    table = transfer.transfer_table(result)
    assert "ours against none" in table and "ours against other" in table
    measured = transfer.measured_skills(journal, world.banks["ours"])
    assert [(r.id, r.uses, r.gained) for r in measured] == [(f"good{i}", 4, 4) for i in range(3)]
    transfer.write_transfer(tmp_path / "out", result, measured)
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == json.loads(
        json.dumps(result)
    )
    assert len(Bank(tmp_path / "out" / "skills.jsonl")) == 3


def test_a_stopped_transfer_goes_on_and_gives_the_same(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole = World(tmp_path / "a")
    expected = whole.result(whole.play())
    world = World(tmp_path / "b")
    kept = len(world.play(stop_after=7).plays)
    assert 7 <= kept < 36
    with open(tmp_path / "b" / "plays.jsonl", "ab") as file:
        file.write(b'{"id": "p1", "se')  # killed while writing
    with pytest.warns(UserWarning, match="torn last line"):
        journal = world.play()
    assert world.result(journal)["plays"] == expected["plays"]
    assert sum(map(len, world.played[1:])) == 36 - kept  # nothing is played twice
    assert len((tmp_path / "b" / "plays.jsonl").read_text().splitlines()) == 37


def test_failed_games_are_excluded_and_played_again(tmp_path):
    world = World(tmp_path)
    result = world.result(world.play(fail={2: 0, 1_000_003: 1}))
    assert {(f["id"], f["condition"]) for f in result["failures"]} == {
        ("p2", "none"),
        ("p3", "ours"),
    }
    assert all(f["status"] == ENV_ERROR for f in result["failures"])
    rows = {r["condition"]: (r["n"], r["excluded"]) for r in result["summary"]}
    assert rows == {"none": (10, 2), "ours": (10, 2), "other": (12, 0)}
    assert "excluded, 4 plays" in transfer.transfer_table(result)
    assert world.result(world.play())["failures"] == []


def test_skills_from_panel_games_are_left_out(tmp_path):
    planted = make_task("elsewhere", content_hash=PANEL[0].content_hash)
    extra = [
        skill_record("same id", PANEL[1], "good advice", source_text=PANEL[1].text),
        skill_record("same content", planted, "good advice", source_text=PANEL[0].text),
    ]
    world = World(tmp_path, extra)
    assert world.banks["ours"].left_out == ["same id", "same content"]
    result = world.result(world.play())
    used = {s["id"] for p in result["plays"] for s in p["skills"]}
    assert not used & {"same id", "same content"} and result["leaks"]["violations"] == []
    assert "2 skills of 'ours' come from panel games" in transfer.transfer_table(result)
    with pytest.raises(
        ValueError, match="must hold usable skills from outside of the panel, got 2"
    ):
        bank = Bank(tmp_path / "only.jsonl")
        bank.append(extra)
        transfer.bank_in_play(bank, PANEL, [], SkillRetriever())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"settings": {"temperature": 0.5}}\n{"id": "t", "seed": 1, "condition": "none"}\n',
            "same temperature, got 0.5 and not 1.0; use another folder or remove",
        ),
        ("[]\n", "must hold plays, got TypeError in line 1"),
        ('{"settings": {"temperature": 1.0}}\n{}\n', "KeyError in line 2"),
        ("x\n", "JSONDecodeError in line 1"),
    ],
)
def test_a_journal_of_something_else_is_refused(tmp_path, text, message):
    path = tmp_path / "plays.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        Journal(path, {"temperature": 1.0})
    assert path.read_text() == text


def test_a_journal_without_plays_takes_new_settings(tmp_path):
    for temperature in (0.5, 1.0):
        assert not Journal(tmp_path / "plays.jsonl", {"temperature": temperature}).plays
    assert json.loads((tmp_path / "plays.jsonl").read_text()) == {"settings": {"temperature": 1.0}}


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with games and a bank, without any policy; and its tasks."""
    pytest.importorskip("alfworld")
    from evolving_rl_jax.data.tasks import load_tasks
    from evolving_rl_jax.envs.alfworld.households.plan import GamesSpec
    from evolving_rl_jax.envs.alfworld.households.write import generate_games

    folder = tmp_path_factory.mktemp("transfer") / "run"
    spec = GamesSpec(
        num_train_households=2, games_per_object=1, num_unseen_households=1, num_heldout=2,
        num_warmstart=6,
    )  # fmt: skip
    generate_games(folder / "games", seed=2, spec=spec)
    config = load_config(
        str(ROOT / "configs" / "debug.py"),
        {"env.num_workers": "1", "eval.splits": "valid_unseen", "eval.num_games": "5"},
    )
    (folder / "config.json").write_text(to_json(config))
    tasks = load_tasks(folder / "games")
    records = []
    for task in tasks:
        if task.split == "valid_unseen_sources":
            place = f"the {task.meta['object']} is in {task.meta['place']}"
            records.append(skill_record(f"about {task.id}", task, place))
    Bank(folder / "skills" / "bank.jsonl").append(records)
    return folder, tasks


def knows_with_a_skill(tasks):
    """A model that plays the walkthrough where its prompt names the object's place."""
    by_text = {t.text: t for t in tasks if t.split == "valid_unseen"}

    def say(messages):
        text = messages[1]["content"].split("\n")[0].removeprefix("Task: ")
        task, turn = by_text[text], sum(m["role"] == "assistant" for m in messages)
        known = f"the {task.meta['object']} is in {task.meta['place']}"
        commands = task.meta["walkthrough"]
        helped = known in messages[0]["content"]
        return GOOD.format(action=commands[turn] if helped else "look")

    return say


def command(folder, url, *more):
    options = ("--timeout=2", "--attempts=8", "--concurrency=4")
    bank = folder / "skills" / "bank.jsonl"
    return main(
        ["transfer", f"--skills={bank}", f"--policy={url}", "--model=m", *options, *map(str, more)]
    )


def test_the_command_against_a_server_that_misbehaves(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("evolving_rl_jax.eval.transfer.client._MAX_WAIT_S", 0.05)
    folder, tasks = run
    faults = [
        (500, {}, b"down"), (429, {"Retry-After": "1"}, {}), (200, {}, b"rubbish"),
        (200, {}, "drop"), (200, {}, "stall"), (200, {}, {"choices": []}),
    ]  # fmt: skip
    out = tmp_path / "out"
    say = knows_with_a_skill(tasks)
    coming, asked, lock = itertools.islice(itertools.cycle(faults), 14), set(), threading.Lock()

    def fault(number):
        """One for each of the first 14 questions, whichever come first; asked again, it is answered."""
        question = json.dumps(server.requests[number], sort_keys=True)
        with lock:
            is_new = question not in asked
            asked.add(question)
            return next(coming, None) if is_new else None

    with serve(say, fault) as (server, url):
        assert command(folder, url, f"--out={out}") == 0
    text = capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    success = {r["condition"]: (r["success"], r["n"]) for r in result["summary"]}
    assert success == {"none": (0.0, 5), "ours": (1.0, 5)}, text
    assert result["usage"]["retries"] >= 12 and result["failures"] == []
    assert "valid_unseen     ours against none" in text and f"written: {out}" in text
    assert result["model"] == "m" and "OPENAI" not in json.dumps(result)
    # everything is there: the same command asks nobody
    assert command(folder, "http://127.0.0.1:9/v1", f"--out={out}") == 2  # another policy
    assert "must hold plays of the same policy" in capsys.readouterr().err
    with serve(lambda m: 1 / 0) as (server, _):
        server_url = result["policy"]
        assert command(folder, server_url, f"--out={out}") == 0
        assert server.requests == []
    assert render_skill(Bank(out / "skills.jsonl").records[0].as_skill())


def test_the_command_keeps_to_its_cap_and_goes_on(run, tmp_path, capsys):
    folder, tasks = run
    out = tmp_path / "out"
    prices = ("--price-in=1000", "--price-out=0", f"--out={out}", "--concurrency=1")
    with serve(knows_with_a_skill(tasks)) as (server, url):
        assert command(folder, url, *prices, "--max-cost=6") == 2
        out_text, error = capsys.readouterr()
        assert "--policy: the cap of 6 is reached" in error and "not played yet" in out_text
        first = json.loads((out / "result.json").read_text())
        assert first["missing"] > 0 and first["usage"]["cost"] <= 6
        before = len(server.requests)
        assert command(folder, url, *prices) == 0
        last = json.loads((out / "result.json").read_text())
        assert last["missing"] == 0 and len(server.requests) > before
        # of both starts, not of the last one alone
        assert last["usage"]["requests"] == len(server.requests)
        assert last["usage"]["cost"] > first["usage"]["cost"] > 0
        kept = {(p["id"], p["condition"]) for p in first["plays"]}
        assert kept and len(last["plays"]) == 10


def test_plays_of_other_settings_never_mix(run, tmp_path, capsys):
    folder, tasks = run
    out = tmp_path / "out"
    with serve(knows_with_a_skill(tasks)) as (server, url):
        assert command(folder, url, f"--out={out}") == 0
        asked = len(server.requests)
        for key, value in (("rollout.max_steps", 3), ("rollout.top_p", 0.5)):
            assert command(folder, url, f"--out={out}", f"--config.{key}={value}") == 2
            error = capsys.readouterr().err
            assert f"must hold plays of the same config.{key}, got" in error
        assert len(server.requests) == asked
        # where and how fast may differ
        assert command(folder, url, f"--out={out}", "--config.env.num_workers=2") == 0
        assert len(server.requests) == asked


def test_weights_have_a_name_of_their_own():
    """Two policies in folders of one name share nothing; the same weights share everything."""
    from evolving_rl_jax.eval.fingerprint import fingerprint

    rng = np.random.default_rng(0)
    params = {
        "a": {"w": rng.normal(size=(3, 4, 5)).astype(np.float32)},
        "b": np.zeros(7, np.float32),
    }
    name = fingerprint(params)
    assert len(name) == 16 and fingerprint(jax.tree.map(jnp.asarray, params)) == name
    found = {name}
    for change in (
        lambda p: p["a"]["w"].__setitem__(
            (2, 3, 4), np.nextafter(p["a"]["w"][2, 3, 4], np.float32(9))
        ),
        lambda p: p["a"]["w"].__setitem__(
            (0, slice(2)), p["a"]["w"][0, [1, 0]].copy()
        ),  # two rows swapped
        lambda p: p["b"].__setitem__(3, -0.0),
        lambda p: p.update(b=np.zeros(8, np.float32)),
        lambda p: p.update(c=p.pop("b")),
    ):
        other = jax.tree.map(np.copy, params)
        change(other)
        found.add(fingerprint(other))
    assert len(found) == 6


def test_layers_apart_have_the_name_of_their_stack():
    from evolving_rl_jax.eval.fingerprint import fingerprint

    rng = np.random.default_rng(0)
    layers = {"w": rng.normal(size=(3, 4, 5)).astype(np.float32), "norm": np.ones((3, 2))}
    params = {"embedding": rng.normal(size=(7, 2)).astype(np.float32), "layers": layers}
    apart = {**params, "layers": tuple({n: x[i] for n, x in layers.items()} for i in range(3))}
    assert fingerprint(apart) == fingerprint(params)
    apart["layers"] = apart["layers"][::-1]
    assert fingerprint(apart) != fingerprint(params)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--policy=http://x/v1",), "--model must name the endpoint's model, got none"),
        (
            ("--policy=http://x/v1", "--model=m", "--max-cost=1"),
            "--max-cost must come with --price",
        ),
        (("--policy=http://x/v1", "--model=m", "--timeout=0"), "--timeout must be > 0"),
        (("--policy=https://me:secret@x/v1", "--model=m"), "an address without a name or password"),
        (("--policy=/nowhere/at/all",), "--policy: "),
        (("--policy=x", "--skills=/nowhere.jsonl"), "does not lie in one"),
        (("--policy=x", "--seeds=0"), "--seeds must be >= 1, got 0"),
        (("--policy=x", "--temperature=-1"), "--temperature must be >= 0, got -1"),
        (("--policy=x", "--other-skills=/no.jsonl"), "--other-skills must be a bank.jsonl, got"),
        (("--policy=http://x/v1", "--model=m", "--split=moon"), "must be splits with games"),
    ],
)
def test_wrong_options(run, capsys, options, message):
    folder, _ = run
    skills = [] if any("--skills=" in o for o in options) else [
        f"--skills={folder / 'skills' / 'bank.jsonl'}"
    ]  # fmt: skip
    assert main(["transfer", *skills, *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and "secret" not in line
