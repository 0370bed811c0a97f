"""The fixed panel: every game of a split exactly once, with and without skills.

Conditions, all played by the same policy at the same temperature:

* ``none``: no skill in the prompt;
* ``own``: the policy plays the most similar game of the declared source pool, extracts one skill from that
  episode, and plays the panel game with it;
* ``oracle``: a skill that states the decisive fact;
* ``misleading``: a skill that states a wrong place for the object.

Sampling is keyed by the game and the condition, so the numbers do not depend on slots or batch size, and
two policies are compared on the same draws.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
from collections.abc import Callable

from evolving_rl_jax.eval.statistics import wilson_interval
from evolving_rl_jax.rollout import facts
from evolving_rl_jax.rollout.episode import Driver
from evolving_rl_jax.rollout.evolve import Candidate, make_candidate
from evolving_rl_jax.skills.retrieval import Retriever
from evolving_rl_jax.types import Episode, Task

# Panels sample under "iterations" far above those of training.
PANEL_ITERATION = 1_000_000_000
_CONDITION_KEY = {"none": 0, "own": 1, "oracle": 2, "misleading": 3}


@dataclasses.dataclass
class PanelGame:
    """One game of the panel and what each condition gave."""

    task: Task
    source: Task | None = None
    episodes: dict[str, Episode] = dataclasses.field(default_factory=dict)


class Panel:
    """Plays a fixed list of games once under each condition.

    Args:
      tasks: the games; order does not matter, they are sorted by id.
      retriever: over the pool that ``own`` skills may come from (never holds a panel game).
      prompts: the policy's prompt style.
      max_chars: longest accepted skill.
    """

    def __init__(self, tasks: list[Task], retriever: Retriever | None, prompts, max_chars: int):
        self.tasks = sorted(tasks, key=lambda t: t.id)
        self.retriever, self.prompts, self.max_chars = retriever, prompts, max_chars

    @property
    def game_list_hash(self) -> str:
        """Hash of the sorted content hashes: equal if and only if the panel is the same."""
        text = "\n".join(sorted(t.content_hash for t in self.tasks))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def play(
        self,
        driver: Driver,
        conditions: tuple[str, ...],
        progress: Callable[[int], None] | None = None,
    ) -> tuple[list[PanelGame], dict]:
        """Returns the games with their episodes, and figures on the source episodes."""
        games = [PanelGame(t) for t in self.tasks]
        for i, game in enumerate(games):
            for condition in conditions:
                if condition != "own":
                    skill = given_skill(condition, game.task, i)
                    self._play_game(driver, game, i, condition, skill)
        sources = _Sources()
        if "own" in conditions:
            self._play_sources(driver, games, sources)
        driver.run(progress)
        return games, sources.figures()

    def _play_game(
        self, driver: Driver, game: PanelGame, i: int, condition: str, skill: str
    ) -> None:
        def done(episode: Episode, _handle) -> None:
            game.episodes[condition] = episode

        driver.play(_CONDITION_KEY[condition] * 1_000_000 + i, game.task, skill, done)

    def _play_sources(self, driver: Driver, games: list[PanelGame], sources: _Sources) -> None:
        """Plays each needed source once; its one skill serves every panel game that retrieved it."""
        users: dict[str, list[int]] = {}
        by_id: dict[str, Task] = {}
        for i, game in enumerate(games):
            (game.source,) = self.retriever.retrieve(game.task, 1)
            users.setdefault(game.source.id, []).append(i)
            by_id[game.source.id] = game.source
        for s, source_id in enumerate(sorted(users)):
            done = self._after_source(driver, games, users[source_id], s, sources)
            driver.play(8_000_000 + s, by_id[source_id], "", done, keep_session=True)

    def _after_source(self, driver, games, users: list[int], s: int, sources: _Sources):
        def start(skill: str) -> None:
            for i in users:
                self._play_game(driver, games[i], i, "own", skill)

        def done(episode: Episode, handle) -> None:
            if handle is None:
                sources.failed += 1
                start("")  # an unseen source leaves the policy without a skill
                return

            def extracted(_i: int, raw: str, sample) -> None:
                candidate = make_candidate(raw, sample, self.prompts, self.max_chars)
                sources.add(episode, candidate)
                start(candidate.text if candidate.valid else "")

            driver.extract(handle, episode.won, [9_000_000 + s], extracted)
            driver.release(handle)

        return done


@dataclasses.dataclass
class _Sources:
    """Counts over the source episodes of a panel."""

    played: int = 0
    won: int = 0
    failed: int = 0
    valid: int = 0
    seen: int = 0
    stated: int = 0

    def add(self, episode: Episode, candidate: Candidate) -> None:
        self.played += 1
        self.won += episode.won
        self.valid += candidate.valid
        if "place" in episode.task.meta:
            seen = facts.fact_seen(episode.task, observations(episode))
            self.seen += seen
            self.stated += (
                seen and candidate.valid and facts.fact_stated(episode.task, candidate.text)
            )

    def figures(self) -> dict[str, float]:
        n = max(self.played, 1)
        return {
            "sources": self.played,
            "source_failures": self.failed,
            "source_success": self.won / n,
            "skill_valid": self.valid / n,
            "fact_seen": self.seen / n,
            "fact_stated_when_seen": self.stated / max(self.seen, 1),
        }


def observations(episode: Episode) -> list[str]:
    """Everything that the episode read, the answer to its last action included."""
    return [t.observation for t in episode.turns] + [episode.last_observation]


def given_skill(condition: str, task: Task, i: int) -> str:
    """The skill text of the conditions that do not depend on the policy."""
    if condition == "none":
        return ""
    obj, place = task.meta["object"], task.meta["place"]
    if condition == "oracle":
        return facts.fact_sentence(obj, place)
    wrong = sorted(p for p in task.meta["habits"].values() if p != place)
    return facts.fact_sentence(obj, wrong[i % len(wrong)])


def summarise(games: list[PanelGame], conditions: tuple[str, ...]) -> dict:
    """split -> condition -> n, success, 95 % Wilson interval, excluded, success by task type."""
    summary: dict = {}
    for split in sorted({g.task.split for g in games}):
        members = [g for g in games if g.task.split == split]
        summary[split] = {}
        for condition in conditions:
            episodes = [g.episodes[condition] for g in members]
            scored = [e for e in episodes if e.scored]
            types = sorted({e.task.task_type for e in scored})
            by_type = {t: _rate([e for e in scored if e.task.task_type == t]) for t in types}
            summary[split][condition] = {
                **_rate(scored),
                "excluded": len(episodes) - len(scored),
                "by_type": by_type,
            }
    return summary


def success_table(result: dict) -> str:
    """The summary of a result as plain text: one line for each split and condition."""
    lines = [
        f"success in % [95 % interval], {result['name']}, temperature {result['temperature']:g}"
    ]
    for split, conditions in result["summary"].items():
        for condition, r in conditions.items():
            share = "no game could be scored"
            if r["n"]:
                low, high = 100 * r["low"], 100 * r["high"]
                share = f"{100 * r['success']:5.1f} [{low:.1f}, {high:.1f}]"
            lines.append(f"{split:<16} {condition:<12} {r['n']:>5} games  {share}")
    return "\n".join(lines)


def _rate(episodes: list[Episode]) -> dict:
    n, k = len(episodes), sum(e.won for e in episodes)
    if not n:
        return {"n": 0, "success": None, "low": None, "high": None}
    low, high = wilson_interval(k, n)
    return {"n": n, "success": k / n, "low": low, "high": high}


def write_result(
    path: pathlib.Path,
    panel: Panel,
    games: list[PanelGame],
    *,
    name: str,
    iteration: int,
    temperature: float,
    seed: int,
    conditions: tuple[str, ...],
    figures: dict,
) -> dict:
    """Writes ``eval/NAME.json`` atomically: every game, the summary, the leak report, the versions."""
    result = {
        "name": name,
        "iteration": iteration,
        "temperature": temperature,
        "seed": seed,
        "game_list_hash": panel.game_list_hash,
        "versions": {p: importlib.metadata.version(p) for p in ("jax", "alfworld", "textworld")},
        "sources": figures,
        "summary": summarise(games, conditions),
        "games": [_game_record(g) for g in games],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result), encoding="utf-8")
    os.replace(partial, path)
    return result


def _game_record(game: PanelGame) -> dict:
    task = game.task
    record = {
        "id": task.id,
        "hash": task.content_hash,
        "split": task.split,
        "type": task.task_type,
        "group": task.group,
        "conditions": {},
    }
    if game.source is not None:
        record["retrieved"] = {"id": game.source.id, "hash": game.source.content_hash}
    for condition, e in sorted(game.episodes.items()):
        record["conditions"][condition] = {
            "won": bool(e.won),
            "status": e.status,
            "steps": len(e.turns),
            "skill": e.skill_text,
        }
    return record
