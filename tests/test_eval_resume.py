"""A panel that was stopped goes on to the same result, bit for bit; journals that do not belong are left out."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from doubles import FakeEngine, FakePool, compact_prompts, make_task, skill_text

from evolving_rl_jax.config import default_config
from evolving_rl_jax.eval import play as panels
from evolving_rl_jax.eval.panel import Panel
from evolving_rl_jax.rollout.episode import Driver, PlaySettings
from evolving_rl_jax.run.hosts import ALONE
from evolving_rl_jax.run.preemption import Preempted, Preemption
from evolving_rl_jax.skills import Bank
from evolving_rl_jax.skills.records import encode
from evolving_rl_jax.skills.retrieval import Retriever, TfidfEmbedder

PROMPTS = compact_prompts()
CONDITIONS = ("none", "own", "oracle", "misleading")
SETTINGS = PlaySettings(
    max_turn_tokens=12, max_skill_tokens=60, max_steps=6, temperature=1.0, top_p=1.0, top_k=0
)
HABITS = {"mug": "cabinet 3", "egg": "drawer 1", "cup": "cabinet 1"}
PROTOCOLS = ("stop_at_error", "teacher_forced")


def household(i, split, **meta):
    obj = sorted(HABITS)[i % 3]
    meta = {"object": obj, "place": HABITS[obj], "habits": HABITS, **meta}
    text = f"find {obj} at house {i // 3}"
    return make_task(
        f"{split}-{i:02d}", split=split, task_type=f"type-{i % 2}", text=text, meta=meta
    )


GAMES = [household(i, "valid_unseen") for i in range(9)]
SOURCES = [household(i, "valid_unseen_sources") for i in range(9)]


def speak(episode, turn):
    """Of two sources nothing usable is written; every third play is lost."""
    source = episode - 9_000_000
    if source >= 0:
        return "nothing" if source < 2 else skill_text(description=f"skill of {source}")
    return "mug> win" if episode % 3 else "mug> lose"


class World:
    """A run whose panel is played by a policy of fixed words; ``stop_at`` finished plays it is told to end."""

    def __init__(
        self, folder, *, protocols=(), weights=0.0, games=GAMES, fail=None, attempts=1, **changes
    ):
        self.panel = Panel(
            games, Retriever(SOURCES, TfidfEmbedder()), PROMPTS, 500, protocols=protocols,
            attempts=attempts,
        )  # fmt: skip
        self.folder, self.said, self.weights, self.fail = folder, [], weights, fail
        config = default_config()
        for key, value in changes.items():
            config.rollout[key] = value
        self.parts = SimpleNamespace(
            config=config,
            folder=SimpleNamespace(
                eval_file=lambda name, t: folder / "eval" / f"{name}-t{t:g}.json"
            ),
            hosts=ALONE,
            preemption=Preemption(),
            progress=self.progress,
            say=self.said.append,
        )
        self.tasks = []
        (folder / "eval").mkdir(parents=True, exist_ok=True)

    def progress(self, _title):
        world = self

        class Bar:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

            def __call__(self, done):
                world.calls += 1
                if done >= world.stop_at or world.calls >= world.stop_after:
                    world.parts.preemption.notice("SIGTERM")

        return Bar()

    def play(self, monkeypatch, stop_at=math.inf, seeds=(1, 2), stop_after=math.inf):
        self.stop_at, self.stop_after, self.calls = stop_at, stop_after, 0

        def driver(_parts, engine, iteration, _temperature):
            pool = FakePool(self.fail)
            self.tasks.append(pool.tasks)
            return Driver(engine, pool, PROMPTS, SETTINGS, iteration=iteration)

        monkeypatch.setattr(panels, "make_driver", driver)
        engine = FakeEngine(PROMPTS.tokenizer, speak)
        engine.params = {"w": np.full(3, self.weights, np.float32)}
        return panels.play_panel(
            self.parts, engine, self.panel, name="final", iteration=4, temperature=1.0,
            conditions=CONDITIONS, seeds=seeds,
        )  # fmt: skip

    @property
    def journal(self):
        return self.folder / "eval" / "final-t1.plays.jsonl"

    @property
    def files(self):
        """The result and the bank, as written."""
        bank = Bank(self.folder / "eval" / "final-t1.skills.jsonl").records
        return (self.folder / "eval" / "final-t1.json").read_bytes(), list(map(encode, bank))


@pytest.mark.parametrize("attempts", [1, 3])
@pytest.mark.parametrize("stop_at", [1, 10, 23, 41])
@pytest.mark.parametrize("protocols", [(), PROTOCOLS])
def test_a_preempted_panel_goes_on_to_the_same_result(
    tmp_path, monkeypatch, stop_at, protocols, attempts
):
    games = GAMES
    if protocols:  # their scores are in the result too
        monkeypatch.setattr(panels, "write_result", without_web(panels.write_result))
    whole = World(tmp_path / "whole", games=games, protocols=protocols, attempts=attempts)
    whole.play(monkeypatch)
    assert not whole.journal.exists()
    cut = World(tmp_path / "cut", games=games, protocols=protocols, attempts=attempts)
    with pytest.raises(Preempted, match="SIGTERM"):
        cut.play(monkeypatch, stop_at)
    kept = len(cut.journal.read_bytes().splitlines()) - 1
    assert kept >= min(stop_at, 1) and not (tmp_path / "cut" / "eval" / "final-t1.json").exists()
    again = World(tmp_path / "cut", games=games, protocols=protocols, attempts=attempts)
    again.play(monkeypatch)
    assert again.files == whole.files
    assert (
        sum(map(len, again.tasks)) == sum(map(len, whole.tasks)) - kept
    )  # nothing is played twice
    assert again.said == [f"final-t1: {kept} plays are kept, going on from there"]
    assert not again.journal.exists()


def without_web(write_result):
    """These doubles score no steps, so there are no web figures to write."""

    def write(path, panel, games, **facts):
        protocols, panel.protocols = panel.protocols, ()
        try:
            return write_result(path, panel, games, **facts)
        finally:
            panel.protocols = protocols

    return write


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_panel_that_is_stopped_often_ends_all_the_same(tmp_path, monkeypatch, attempts):
    whole = World(tmp_path / "whole", attempts=attempts)
    whole.play(monkeypatch)
    for _ in range(100):
        world = World(tmp_path / "cut", attempts=attempts)
        try:
            world.play(monkeypatch, stop_after=8 * attempts)  # a source is kept as a whole
            break
        except Preempted:
            continue
    assert world.files == whole.files


def test_a_torn_last_line_is_played_again(tmp_path, monkeypatch):
    whole, cut = World(tmp_path / "whole"), World(tmp_path / "cut")
    whole.play(monkeypatch)
    with pytest.raises(Preempted):
        cut.play(monkeypatch, 12)
    data = cut.journal.read_bytes()
    cut.journal.write_bytes(data[: -len(data.splitlines()[-1]) // 2])
    again = World(tmp_path / "cut")
    with pytest.warns(UserWarning, match="torn last line"):
        again.play(monkeypatch)
    assert again.files == whole.files


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"max_steps": 3}, "same config.rollout.max_steps, got"),
        ({"num_source_episodes": 2}, "same config.rollout.num_source_episodes, got"),
        ({"weights": 1.0}, "same weights, got"),
        ({"games": GAMES[:-1]}, "same game_list_hash, got"),
    ],
)
def test_plays_of_another_configuration_are_left_out(tmp_path, monkeypatch, other, why):
    with pytest.raises(Preempted):
        World(tmp_path / "cut", **other).play(monkeypatch, 12)
    whole, again = World(tmp_path / "whole"), World(tmp_path / "cut")
    whole.play(monkeypatch)
    again.play(monkeypatch)
    assert again.files == whole.files
    (said,) = again.said
    assert said.startswith("final-t1 is played from its beginning: ") and why in said
    assert sum(map(len, again.tasks)) == sum(map(len, whole.tasks))


def test_what_is_no_journal_is_left_out(tmp_path, monkeypatch):
    whole, world = World(tmp_path / "whole"), World(tmp_path / "cut")
    whole.play(monkeypatch)
    world.journal.write_text("[]\n{}\n")
    world.play(monkeypatch)
    assert (
        world.files == whole.files and "must hold plays, got TypeError in line 1" in world.said[0]
    )


def test_settings_of_placement_may_change(tmp_path, monkeypatch):
    with pytest.raises(Preempted):
        World(tmp_path / "cut").play(monkeypatch, 12)
    again = World(tmp_path / "cut", deadline_s=7.0)
    again.play(monkeypatch)
    assert "plays are kept" in again.said[0]


def test_failures_are_not_kept_but_played_again(tmp_path, monkeypatch):
    """An environment that dies of the same notice must not be left out of the result for ever."""
    whole, cut = World(tmp_path / "whole"), World(tmp_path / "cut", fail={2: 0, 8_000_003: 0})
    whole.play(monkeypatch)
    with pytest.raises(Preempted):
        cut.play(monkeypatch, 30)
    again = World(tmp_path / "cut")
    again.play(monkeypatch)
    assert again.files == whole.files


def test_no_text_of_a_protected_task_is_kept(tmp_path, monkeypatch):
    sealed = [household(i, "valid_unseen", sealed=True) for i in range(9)]
    with pytest.raises(Preempted):
        World(tmp_path, games=sealed).play(monkeypatch, 30)
    text = (tmp_path / "eval" / "final-t1.plays.jsonl").read_text()
    records = [json.loads(line) for line in text.splitlines()[1:]]
    games = [r for r in records if r["id"].startswith("valid_unseen-")]
    assert games and not any("turns" in r or "skills" in r for r in games)
    assert not any(task.text in text for task in sealed)


class Host:
    """One of two hosts that share a folder; what they gather is played by the other too."""

    def __init__(self, index, count=2):
        self.index, self.count, self.first = index, count, index == 0

    def share(self, items):
        return list(items)[self.index :: self.count]

    def gather(self, value):
        return [value]


def test_each_host_keeps_its_own_share_and_fewer_go_on(tmp_path, monkeypatch):
    """Two hosts are stopped; one goes on with what both have played."""
    whole = World(tmp_path / "whole")
    whole.play(monkeypatch, seeds=(1,))
    for index in range(2):
        world = World(tmp_path / "cut")
        world.parts.hosts = Host(index)
        with pytest.raises(Preempted):
            world.play(monkeypatch, 14, seeds=(1,))
    files = sorted(p.name for p in (tmp_path / "cut" / "eval").iterdir())
    assert files == ["final-t1.plays-1.jsonl", "final-t1.plays.jsonl"]
    kept = sum(len((tmp_path / "cut" / "eval" / f).read_text().splitlines()) - 1 for f in files)
    again = World(tmp_path / "cut")
    again.play(monkeypatch, seeds=(1,))
    assert again.files == whole.files and f"{kept} plays are kept" in again.said[0]
    assert not list((tmp_path / "cut" / "eval").glob("*.plays*"))
