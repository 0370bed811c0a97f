"""The fixed panel: every game once, the same numbers whatever the batch, what is written."""

import dataclasses
import json
import random
from collections import Counter

import pytest
from doubles import FakeEngine, FakePool, compact_prompts, make_task, skill_text

from evolving_rl_jax.envs.alfworld import facts
from evolving_rl_jax.eval.panel import PANEL_ITERATION, Panel
from evolving_rl_jax.eval.results import skill_records, success_table, summarise, write_result
from evolving_rl_jax.eval.statistics import outcomes, wilson_interval
from evolving_rl_jax.rollout.episode import Driver, PlaySettings
from evolving_rl_jax.rollout.known_facts import given_skill
from evolving_rl_jax.skills import AuditRules
from evolving_rl_jax.skills.retrieval import Retriever, TfidfEmbedder
from evolving_rl_jax.types import ENV_ERROR

PROMPTS = compact_prompts()
CONDITIONS = ("none", "own", "oracle", "misleading")
SETTINGS = PlaySettings(
    max_turn_tokens=12, max_skill_tokens=60, max_steps=6, temperature=1.0, top_p=1.0, top_k=0
)
HABITS = {"mug": "cabinet 3", "egg": "drawer 1", "cup": "cabinet 1"}


def household_task(i, split="valid_unseen", **changes):
    obj = sorted(HABITS)[i % 3]
    return make_task(
        f"{split}-{i:02d}",
        split=split,
        task_type=f"type-{i % 2}",
        text=f"find {obj} at house {i // 3}",
        meta={"object": obj, "place": HABITS[obj], "habits": HABITS},
        **changes,
    )


PANEL = [household_task(i, s) for s in ("valid_unseen", "heldout_types") for i in range(6)]
SOURCES = [household_task(i, "valid_unseen_sources") for i in range(6)]


def won_by(episode):
    return "mug> win" if episode % 3 else "mug> lose"


def speak(broken=()):
    """Extractions state a fact, except those of the sources in ``broken``."""

    def say(episode, turn):
        if episode < 9_000_000:
            return won_by(episode)
        source = episode - 9_000_000
        return "nothing" if source in broken else skill_text(description=f"skill of {source}")

    return say


def play(tasks=PANEL, conditions=CONDITIONS, fail=None, broken=(), seed=0, sources=SOURCES):
    retriever = Retriever(sources, TfidfEmbedder())
    panel = Panel(tasks, retriever, PROMPTS, 500)
    engine, pool = FakeEngine(PROMPTS.tokenizer, speak(broken)), FakePool(fail, seed)
    driver = Driver(engine, pool, PROMPTS, SETTINGS, iteration=PANEL_ITERATION)
    games, figures = panel.play(driver, conditions)
    assert not engine.open_now
    return panel, games, figures, pool


def result_of(tmp_path, played, name="r"):
    panel, games, figures, _ = played
    return write_result(
        tmp_path / "eval" / f"{name}.json",
        panel,
        games,
        name=name,
        iteration=3,
        temperature=0.5,
        seed=1,
        conditions=CONDITIONS,
        figures=figures,
    )


def test_every_game_is_played_once_under_every_condition():
    _, games, figures, pool = play()
    assert [g.task.id for g in games] == sorted(t.id for t in PANEL)
    for i, game in enumerate(games):
        assert set(game.episodes) == set(CONDITIONS)
        for number, condition in enumerate(CONDITIONS):
            episode = game.episodes[condition]
            assert episode.task is game.task
            assert episode.won == (won_by(number * 1_000_000 + i) == "mug> win")
        assert game.episodes["none"].skill_text == ""
        obj, place = game.task.meta["object"], game.task.meta["place"]
        assert game.episodes["oracle"].skill_text == f"the {obj} is in {place}"
        kept, _ = facts.claims(game.episodes["misleading"].skill_text)
        assert kept[obj] != place and kept[obj] in HABITS.values()
        assert game.source.text == game.task.text and game.source in SOURCES
    assert figures["sources"] == len(SOURCES) and figures["skill_valid"] == 1
    assert len(pool.tasks) == 4 * len(PANEL) + len(SOURCES)


def test_games_are_spread_over_sources_that_are_equally_similar():
    def named(task, name):
        return dataclasses.replace(task, id=name, path=name, content_hash=f"hash of {name}")

    sources = [named(SOURCES[0], f"source-{i}") for i in range(6)]
    games = [named(PANEL[0], f"game-{i}") for i in range(12)]
    _, played, figures, _ = play(games, ("own",), sources=sources)
    assert figures["sources"] == 6
    assert sorted(Counter(g.source.id for g in played).values()) == [2] * 6
    _, again, _, _ = play(games[::-1], ("own",), sources=sources[::-1], seed=7)
    assert [g.source.id for g in again] == [g.source.id for g in played]  # drawn once
    assert [g.source.id for g in played[:6]] != [s.id for s in sources]  # by lot


def test_one_skill_of_a_source_serves_all_games_that_retrieved_it():
    _, games, _, _ = play()
    by_source = {}
    for game in games:
        by_source.setdefault(game.source.id, set()).add(game.episodes["own"].skill_text)
    assert all(len(texts) == 1 for texts in by_source.values())
    texts = {text for texts in by_source.values() for text in texts}
    assert texts == {f"skill of {s}" for s in range(len(SOURCES))}


def test_without_a_usable_skill_the_game_is_played_without_one():
    _, games, figures, _ = play(broken={0, 1}, fail={8_000_002: 0})
    played_without = {g.source.id for g in games if g.episodes["own"].skill_text == ""}
    assert played_without == {s.id for s in SOURCES[:3]}
    assert figures["source_failures"] == 1 and figures["sources"] == len(SOURCES) - 1
    assert figures["skill_valid"] == pytest.approx(3 / 5)
    assert all("own" in g.episodes for g in games)


@pytest.mark.parametrize("seed", range(3))
def test_neither_the_order_of_games_nor_of_answers_matters(tmp_path, seed):
    shuffled = random.Random(seed).sample(PANEL, len(PANEL))
    expected = result_of(tmp_path, play())
    assert result_of(tmp_path, play(shuffled, seed=seed)) == expected
    assert Panel(shuffled[1:], None, PROMPTS, 1).game_list_hash != expected["game_list_hash"]


def test_infrastructure_failures_are_excluded_not_lost(tmp_path):
    failing = {1: 0, 2_000_003: 1, 1_000_000: 0}
    result = result_of(tmp_path, play(fail=failing))
    summary = result["summary"]
    rows = [(s, c) for s in ("valid_unseen", "heldout_types") for c in CONDITIONS]
    games = {g["id"]: g for g in result["games"]}
    for split, condition in rows:
        members = [g["conditions"][condition] for g in games.values() if g["split"] == split]
        scored = [m for m in members if m["status"] != ENV_ERROR]
        row = summary[split][condition]
        assert row["n"] == len(scored) and row["excluded"] == len(members) - len(scored)
        won = sum(m["won"] for m in scored)
        assert row["success"] == pytest.approx(won / len(scored))
        assert (row["low"], row["high"]) == wilson_interval(won, len(scored))
        assert sum(t["n"] for t in row["by_type"].values()) == row["n"]
    assert sum(summary[s][c]["excluded"] for s, c in rows) == 3


def test_a_split_without_any_scored_game_has_no_success():
    _, games, _, _ = play(tasks=PANEL[:1], conditions=("none",), fail={0: 0})
    row = summarise(games, ("none",))["valid_unseen"]["none"]
    assert (row["n"], row["excluded"], row["success"]) == (0, 1, None)


def test_the_result_file_says_what_was_retrieved_and_can_be_compared(tmp_path):
    result = result_of(tmp_path, play())
    path = tmp_path / "eval" / "r.json"
    assert json.loads(path.read_text(encoding="utf-8")) == result
    assert [p.name for p in path.parent.iterdir()] == ["r.json"]
    hashes = {t.id: t.content_hash for t in SOURCES}
    panel_hashes = {t.content_hash for t in PANEL}
    for game in result["games"]:
        assert hashes[game["retrieved"]["id"]] == game["retrieved"]["hash"]
        assert game["retrieved"]["hash"] not in panel_hashes
    assert {"jax", "alfworld", "textworld", "scikit-learn", "python"} <= set(result["versions"])
    assert all(result["versions"].values()) and result["dataset"]["games"] == len(PANEL)
    found = outcomes(result)
    assert set(found) == {(s, c) for s in ("valid_unseen", "heldout_types") for c in CONDITIONS}
    table = success_table(result).splitlines()
    assert len(table) == 1 + len(found) and "r, temperature 0.5" in table[0]
    row = result["summary"]["heldout_types"]["none"]
    assert any(f"{100 * row['success']:.1f} [" in line for line in table if "none" in line)


def test_a_source_that_the_infrastructure_failed_does_not_count(tmp_path):
    result = result_of(tmp_path, play(fail={8_000_002: 0}))
    third = sorted(t.id for t in SOURCES)[2]
    hit = [g for g in result["games"] if g["retrieved"]["id"] == third]
    assert hit and all(g["conditions"]["own"]["status"] == ENV_ERROR for g in hit)
    assert {f["id"] for f in result["failures"]} == {g["id"] for g in hit}
    assert all(f["condition"] == "own" and third in f["error"] for f in result["failures"])
    for split, conditions in result["summary"].items():
        lost = sum(g["split"] == split for g in hit)
        assert conditions["own"]["excluded"] == lost and conditions["none"]["excluded"] == 0
        row = next(r for r in result["paired"] if (r["split"], r["condition"]) == (split, "own"))
        assert row["n"] == 6 - lost
    assert "excluded, 2 plays that the infrastructure failed" in success_table(result)


def test_a_planted_copy_of_a_panel_game_is_never_retrieved_and_is_reported(tmp_path):
    victim = PANEL[4]
    copy = dataclasses.replace(victim, id="aaa-planted", split="valid_unseen_sources")
    same_id = dataclasses.replace(PANEL[5], content_hash="other", split="valid_unseen_sources")
    clean = result_of(tmp_path, play())
    played = play(sources=[*SOURCES, copy, same_id])
    played[0].training_tasks = [copy, household_task(9, "train")]
    result = result_of(tmp_path, played)
    assert result["games"] == clean["games"]  # it changed nothing at all
    assert result["leaks"]["excluded"] == [
        {"id": "aaa-planted", "same": "content", "panel_game": victim.id},
        {"id": same_id.id, "same": "id", "panel_game": PANEL[5].id},
    ]
    assert [c["id"] for c in result["leaks"]["training_copies"]] == ["aaa-planted"]
    assert result["leaks"]["violations"] == [] and result["leaks"]["identical_texts"] == len(PANEL)
    table = success_table(result)
    assert "2 tasks of the source pool are panel games and were never retrieved" in table
    assert "1 training tasks are copies of panel games and are left out of training" in table


def test_training_leaves_copies_of_panel_games_out():
    from types import SimpleNamespace

    from evolving_rl_jax.run.parts import panel_tasks, training_tasks

    data = SimpleNamespace(train_split="train", train_types=("type-0", "type-1"))
    splits = SimpleNamespace(splits=("valid_unseen", "heldout_types"))
    config = SimpleNamespace(data=data, eval=splits)
    train = [household_task(i, "train") for i in range(4)]
    copy = dataclasses.replace(PANEL[0], id="planted", split="train")
    tasks = [*train, copy, *PANEL]

    def pool():
        return training_tasks(config, tasks, panel_tasks(config, tasks))

    assert [t.id for t in pool()] == [t.id for t in train]
    splits.splits = ("train",)  # a panel on the training split itself leaves it as it is
    assert len(pool()) == 5


def test_seeds_are_kept_apart_and_paired_by_seed(tmp_path):
    panel = Panel(PANEL, Retriever(SOURCES, TfidfEmbedder()), PROMPTS, 500)
    games = []
    for seed in (1, 2, 3):
        engine = FakeEngine(PROMPTS.tokenizer, lambda e, t, s=seed: won_by(e + s))
        driver = Driver(engine, FakePool(), PROMPTS, SETTINGS, iteration=seed)
        games += panel.play(driver, ("none", "oracle"), seed=seed)[0]
    result = write_result(
        tmp_path / "r.json", panel, games, name="r", iteration=1, temperature=1.0, seed=1,
        conditions=("none", "oracle"), figures={},
    )  # fmt: skip
    assert result["seeds"] == [1, 2, 3] and len(result["games"]) == 3 * len(PANEL)
    row = result["summary"]["valid_unseen"]["none"]
    assert row["n"] == 18 and row["interval"] != "wilson"
    assert row["low"] <= row["success"] <= row["high"]
    assert {r["n"] for r in result["paired"]} == {18}
    assert "seeds 1, 2, 3" in success_table(result)


def test_skills_of_a_panel_become_records_with_their_measured_worth():
    _, games, _, _ = play(broken={1})
    records = skill_records(games, "final", 7, 14)
    assert [r.source_task_id for r in records] == sorted(t.id for t in SOURCES)
    for record, source in zip(records, sorted(t.id for t in SOURCES), strict=True):
        users = [g for g in games if g.source.id == source]
        if source == SOURCES[1].id:
            assert not record.usable and record.uses == 0 and "no JSON object" in record.reason
            continue
        assert record.uses == record.baseline_uses == len(users) == 2
        assert record.wins == sum(g.episodes["own"].won for g in users)
        assert record.baseline_wins == sum(g.episodes["none"].won for g in users)
        assert record.source_text == users[0].source.text and record.policy_step == 14


def test_further_audits_and_the_limit_of_a_prompt_apply_to_own_skills():
    text = "the mug is here"
    found = {}
    for rules, fit in ((None, None), (AuditRules(max_chars=5), None), (None, lambda t: t[:7])):
        panel = Panel(PANEL[:2], Retriever(SOURCES), PROMPTS, 500, rules=rules, fit=fit)
        engine = FakeEngine(
            PROMPTS.tokenizer,
            lambda e, t: won_by(e) if e < 9_000_000 else skill_text(description=text),
        )
        driver = Driver(engine, FakePool(), PROMPTS, SETTINGS, iteration=1)
        games, figures = panel.play(driver, ("own",))
        found[games[0].episodes["own"].skill_text] = figures["skill_valid"]
    assert found == {text: 1.0, "": 0.0, "the mug": 1.0}


def test_given_skills_of_a_game_are_fixed():
    task = PANEL[0]
    wrong = [given_skill("misleading", task, i, PROMPTS) for i in range(4)]
    assert wrong[0] == wrong[2] != wrong[1] == wrong[3]
    assert given_skill("none", task, 0, PROMPTS) == ""


@pytest.fixture(scope="module")
def unseen_games(tmp_path_factory):
    """(panel games, source games) of two generated households."""
    pytest.importorskip("alfworld")
    from evolving_rl_jax.data.tasks import load_tasks
    from evolving_rl_jax.envs.alfworld.households.plan import GamesSpec
    from evolving_rl_jax.envs.alfworld.households.write import generate_games

    folder = tmp_path_factory.mktemp("unseen")
    spec = GamesSpec(
        num_train_households=1,
        games_per_object=1,
        num_unseen_households=1,
        num_heldout=2,
        num_warmstart=0,
    )
    generate_games(folder, seed=2, spec=spec)
    tasks = load_tasks(folder)
    panel = [t for t in tasks if t.split in ("valid_unseen", "heldout_types")]
    return panel, [t for t in tasks if t.split == "valid_unseen_sources"]


def test_a_real_engine_gives_the_same_panel_with_any_number_of_slots(unseen_games):
    import jax

    from evolving_rl_jax import models
    from evolving_rl_jax.envs.pool.pool import EnvPool
    from evolving_rl_jax.generate import Engine

    panel_games, sources = unseen_games
    cfg = models.ModelConfig(
        vocab_size=PROMPTS.tokenizer.vocab_size,
        hidden_size=16,
        intermediate_size=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
    )
    params = models.init(cfg, jax.random.key(0))
    params["embedding"] = params["embedding"] * 15  # far from uniform: an error would show
    found = []
    with EnvPool("alfworld", num_workers=0) as pool:
        for num_slots, rows in ((1, 1), (4, 4), (16, 4)):
            engine = Engine(
                cfg, params, num_slots=num_slots, max_length=320, prefill_chunk=(32,),
                decode_window=12, row_buckets=(rows,), column_buckets=(320,), seed=3,
            )  # fmt: skip
            panel = Panel(panel_games, Retriever(sources, TfidfEmbedder()), PROMPTS, 500)
            driver = Driver(engine, pool, PROMPTS, SETTINGS, iteration=PANEL_ITERATION)
            games, figures = panel.play(driver, CONDITIONS)
            turns = [g.episodes[c].turns for g in games for c in CONDITIONS]
            found.append((summarise(games, CONDITIONS), figures, turns))
            assert not engine.busy
    assert found[0] == found[1] == found[2]
    outputs = {t.output for turns in found[0][2] for t in turns}
    assert len(outputs) > 50  # the policy did say different things


def test_a_panel_of_several_temperatures_is_made_once(monkeypatch):
    """Making it fits its retriever; the same panel after other iterations is the same one."""
    from types import SimpleNamespace

    from evolving_rl_jax.eval import play

    made, played = [], []
    monkeypatch.setattr(
        play, "make_panel", lambda parts, num: made.append(num) or f"panel of {num}"
    )
    monkeypatch.setattr(play, "play_panel", lambda *args, **named: played.append((args[2], named)))
    monkeypatch.setattr(play, "played_at", lambda path: 3 if path == ("warmstart", 0.0) else None)
    settings = {"temperatures": (1.0, 0.5, 0.0), "conditions": ("none", "own"), "num_games": 0}
    settings |= {"every": 2, "every_games": 4}
    parts = SimpleNamespace(
        config=SimpleNamespace(eval=SimpleNamespace(**settings)),
        folder=SimpleNamespace(eval_file=lambda *name: name),
        hosts=SimpleNamespace(from_first=lambda value: value, count=1),
    )
    engine = SimpleNamespace(warmup=lambda: None, set_params=lambda params, version: None)
    panels = play.Panels(parts, engine, lambda: None)
    panels.play("warmstart", None, 3)  # one of its temperatures is there already
    for iteration in (4, 6):
        panels.play_small(None, iteration)
    assert made == [0, 4]
    of_start = [("panel of 0", t) for t in (1.0, 0.5)]
    assert [(p, n["temperature"]) for p, n in played] == of_start + [("panel of 4", 1.0)] * 2
    assert [panels.due(i) for i in (1, 2, 3, 4)] == [False, True, False, True]
