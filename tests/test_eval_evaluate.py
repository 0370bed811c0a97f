"""The fixed panel: every game once, the same numbers whatever the batch, what is written."""

import json
import random

import pytest
from doubles import FakeEngine, FakePool, compact_prompts, make_task, skill_text

from evolving_rl_jax.eval import evaluate
from evolving_rl_jax.eval.evaluate import Panel, given_skill, summarise, write_result
from evolving_rl_jax.eval.statistics import outcomes, wilson_interval
from evolving_rl_jax.rollout import facts
from evolving_rl_jax.rollout.episode import Driver, PlaySettings
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
    driver = Driver(engine, pool, PROMPTS, SETTINGS, iteration=evaluate.PANEL_ITERATION)
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
    assert set(result["versions"]) == {"jax", "alfworld", "textworld"}
    found = outcomes(result)
    assert set(found) == {(s, c) for s in ("valid_unseen", "heldout_types") for c in CONDITIONS}
    table = evaluate.success_table(result).splitlines()
    assert len(table) == 1 + len(found) and "r, temperature 0.5" in table[0]
    row = result["summary"]["heldout_types"]["none"]
    assert any(f"{100 * row['success']:.1f} [" in line for line in table if "none" in line)


def test_given_skills_of_a_game_are_fixed():
    task = PANEL[0]
    wrong = [given_skill("misleading", task, i) for i in range(4)]
    assert wrong[0] == wrong[2] != wrong[1] == wrong[3]
    assert given_skill("none", task, 0) == ""


@pytest.fixture(scope="module")
def unseen_games(tmp_path_factory):
    """(panel games, source games) of two generated households."""
    pytest.importorskip("alfworld")
    from evolving_rl_jax.data.tasks import load_tasks
    from evolving_rl_jax.envs.households import GamesSpec, generate_games

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


def test_a_real_engine_gives_the_same_panel_with_any_number_of_slots(unseen_games, engine_options):
    import jax

    from evolving_rl_jax import models
    from evolving_rl_jax.envs.workers import EnvPool
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
    with EnvPool("alfworld", engine_options, num_workers=0) as pool:
        for num_slots, rows in ((2, 2), (5, 4), (64, 4)):
            engine = Engine(
                cfg, params, num_slots=num_slots, max_length=320, prefill_chunk=(32,),
                decode_window=12, row_buckets=(rows,), column_buckets=(320,), seed=3,
            )  # fmt: skip
            panel = Panel(panel_games, Retriever(sources, TfidfEmbedder()), PROMPTS, 500)
            driver = Driver(engine, pool, PROMPTS, SETTINGS, iteration=evaluate.PANEL_ITERATION)
            games, figures = panel.play(driver, CONDITIONS)
            turns = [g.episodes[c].turns for g in games for c in CONDITIONS]
            found.append((summarise(games, CONDITIONS), figures, turns))
            assert not engine.busy
    assert found[0] == found[1] == found[2]
    outputs = {t.output for turns in found[0][2] for t in turns}
    assert len(outputs) > 50  # the policy did say different things
