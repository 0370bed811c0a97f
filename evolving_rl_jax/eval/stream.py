"""Test-time evolution: a frozen policy that goes on learning through its skill bank alone.

Tasks arrive in order.  For each, the policy plays with the most similar skill that it has banked so
far, then writes a skill of that episode, which is banked for later tasks.  Success is counted before
anything is learned from a task.  The same tasks are also played with the bank off.

A stream is sequential; those of several seeds (other orders, other draws) run side by side.  What
a stream samples depends on its seed and on the position in it, never on slots or on other streams,
so one that was stopped goes on from its journal as if nothing had happened.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from evolving_rl_jax.eval.journal import Journal
from evolving_rl_jax.rollout.episode import Driver
from evolving_rl_jax.rollout.evolve import Candidate, make_candidate
from evolving_rl_jax.skills.audit import AuditRules
from evolving_rl_jax.skills.bank import Bank, SkillRecord
from evolving_rl_jax.skills.records import Outcome, decode, encode
from evolving_rl_jax.skills.retrieval import SkillRetriever
from evolving_rl_jax.types import SCORED, Episode, Task

STREAM_ITERATION = 1_500_000_000  # sampling keys above those of panels
_STREAM_KEYS = 20_000_000  # keys a stream: bank on, extractions, bank off
_EXTRACTIONS, _BANK_OFF = 5_000_000, 10_000_000
WITH, WITHOUT = "with", "without"  # the bank, as conditions in the journal


@dataclasses.dataclass(frozen=True)
class Side:
    """What is kept of an episode, with the bank on or off; ``status`` as in `Episode`."""

    won: bool
    status: str
    steps: int
    skill_text: str
    error: str
    score: float | None = None  # see `Episode.score`; None in journals of before

    @property
    def value(self) -> float:
        """How far the task was done."""
        return float(self.won) if self.score is None else self.score

    @property
    def scored(self) -> bool:
        return self.status in SCORED

    @classmethod
    def of(cls, episode: Episode) -> Side:
        steps = len(episode.turns)
        won, text = bool(episode.won), episode.skill_text
        return cls(won, episode.status, steps, text, episode.error, episode.score)

    @classmethod
    def from_kept(cls, play: dict[str, Any]) -> Side:
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: play[name] for name in names if name in play})


@dataclasses.dataclass
class StreamPlay:
    """One task of a stream, with the bank on and off.  ``skills`` are those in its prompt."""

    task: Task
    seed: int
    position: int
    related: int
    skills: list[tuple[SkillRecord, float]] = dataclasses.field(default_factory=list)
    with_bank: Side | None = None
    without: Side | None = None


@dataclasses.dataclass(frozen=True)
class StreamSettings:
    """How a stream uses its bank.

    Attributes:
      prompts: the policy's prompt style.
      max_chars: longest accepted skill.
      make_retriever: of an empty skill retriever.
      top: skills in a prompt, at most.
      rules: further audits; None = those of training.
      fit: cuts the skills' text to what the prompt may hold.
      policy_step, iteration, name: of the policy, for the records.
      num_tasks: a stream ends after so many.
    """

    prompts: Any
    max_chars: int
    make_retriever: Callable[[], SkillRetriever]
    top: int = 1
    rules: AuditRules | None = None
    fit: Callable[[str], str] = str
    policy_step: int = 0
    iteration: int = 0
    name: str = "stream"
    num_tasks: int = sys.maxsize


def arrival_order(tasks: Sequence[Task], seed: int) -> list[Task]:
    """The order in which tasks arrive: a permutation of their ids by the seed."""
    tasks = sorted(tasks, key=lambda t: t.id)
    return [tasks[i] for i in np.random.default_rng([seed, 7]).permutation(len(tasks))]


def play_streams(
    driver: Driver,
    tasks: Sequence[Task],
    banks: dict[int, Bank],
    settings: StreamSettings,
    journal: Journal,
    progress: Callable[[int], None] | None = None,
) -> list[StreamPlay]:
    """Plays one stream for each seed, bank on and bank off.

    Args:
      driver: whose iteration is ``STREAM_ITERATION``, whatever the seeds.
      tasks: their order here does not matter.
      banks: seed -> an empty bank, which is filled.
      settings: how.
      journal: of what has been played before, which is not played again; gets all that is.
      progress: called with the number of finished episodes.

    Returns:
      The plays, by seed and position.
    """
    streams = [
        _Stream(
            driver,
            arrival_order(tasks, seed)[: settings.num_tasks],
            seed,
            seed * _STREAM_KEYS,
            bank,
            settings,
            journal,
        )  # fmt: skip
        for seed, bank in sorted(banks.items())
    ]
    before = len(journal.plays)
    for stream in streams:
        stream.start()
    driver.run(progress and (lambda n: progress(before + n)))
    for stream in streams:
        stream.measure()
    return [play for stream in streams for play in stream.plays]


class _Stream:
    """One seed's stream: the next task starts when the last one's skill is banked."""

    def __init__(self, driver, tasks, seed, first_key, bank, settings, journal):
        self.driver, self.bank, self.settings, self.journal = driver, bank, settings, journal
        self.first_key = first_key
        self.retriever = settings.make_retriever()
        seen: Counter[str] = Counter()
        self.plays = []
        for position, task in enumerate(tasks):
            self.plays.append(StreamPlay(task, seed, position, seen[task.group or task.id]))
            seen[task.group or task.id] += 1

    def start(self) -> None:
        first = self._take_kept()
        for i, play in enumerate(self.plays):
            if play.without is None:
                key = self.first_key + _BANK_OFF + i
                self.driver.play(key, play.task, "", self._keep_without(play))
        self._next(first)

    def _take_kept(self) -> int:
        """Takes what the journal holds; returns the position of the first task that is left."""
        banked: dict[str, SkillRecord] = {}
        first = 0
        for i, play in enumerate(self.plays):
            if kept := self._kept(play, WITHOUT):
                play.without = Side.from_kept(kept)
            if kept := self._kept(play, WITH):
                play.with_bank, first = Side.from_kept(kept), i + 1
                play.skills = [(banked[name], cosine) for name, cosine in kept["skills"]]
                if kept["record"]:
                    record = decode(kept["record"].encode())
                    banked[record.id] = record
        self.bank.append(banked.values())
        for record in banked.values():  # one by one, as they came: TF-IDF weights depend on it
            self.retriever.add([record])
        return first

    def _kept(self, play: StreamPlay, condition: str) -> dict[str, Any] | None:
        return self.journal.plays.get((play.task.id, play.seed, condition))

    def _next(self, i: int) -> None:
        if i == len(self.plays):
            return
        play, s = self.plays[i], self.settings
        play.skills = self.retriever.retrieve(play.task, s.top)
        texts = [s.prompts.render_skill(record.as_skill()) for record, _ in play.skills]
        text = s.fit("\n\n".join(texts)) if texts else ""
        done = self._after_episode(i)
        self.driver.play(self.first_key + i, play.task, text, done, keep_session=True)

    def _after_episode(self, i: int):
        play, s = self.plays[i], self.settings

        def done(episode: Episode, handle) -> None:
            if handle is None or not episode.turns:
                # The environment failed, or the page did not fit: nothing to learn from.
                self._keep_with(play, episode)
                if handle is not None:
                    self.driver.release(handle)
                self._next(i + 1)
                return

            def extracted(_n: int, raw: str, sample) -> None:
                candidate = make_candidate(raw, sample, s.prompts, s.max_chars, s.rules, episode)
                record = self._record(i, candidate)
                self.bank.append([record])
                self.retriever.add([record])
                self._keep_with(play, episode, record)
                self._next(i + 1)

            self.driver.extract(handle, episode.won, [self._extraction(i)], extracted)
            self.driver.release(handle)

        return done

    def _keep_without(self, play: StreamPlay):
        def done(episode: Episode, _handle) -> None:
            play.without = Side.of(episode)
            self._write(play, WITHOUT, play.without)

        return done

    def _keep_with(self, play: StreamPlay, episode: Episode, record=None) -> None:
        play.with_bank = Side.of(episode)
        skills = [(r.id, cosine) for r, cosine in play.skills]
        text = encode(record).decode() if record else ""
        self._write(play, WITH, play.with_bank, skills=skills, record=text)

    def _write(self, play: StreamPlay, condition: str, side: Side, **more) -> None:
        names = {"id": play.task.id, "seed": play.seed, "condition": condition}
        self.journal.add(names | dataclasses.asdict(side) | more)

    def _extraction(self, i: int) -> int:
        return self.first_key + _EXTRACTIONS + i

    def _record(self, i: int, candidate: Candidate) -> SkillRecord:
        play, s = self.plays[i], self.settings
        name = f"{s.name}-s{play.seed}-{i:05d}"
        return candidate.record(name, play.task, iteration=s.iteration, policy_step=s.policy_step)

    def measure(self) -> None:
        """Writes into the bank what each skill was worth: with it against with the bank off."""
        outcomes: dict[str, list[Outcome]] = {}
        for play in self.plays:
            ours, without = play.with_bank, play.without
            if ours.scored and without.scored:
                gained = ours.value - without.value
                pair = Outcome(ours.won, without.won, ours.steps, without.steps, gained)
                for record, _ in play.skills:
                    outcomes.setdefault(record.id, []).append(pair)
        self.bank.revise_all(self.bank[i].measured(found) for i, found in outcomes.items())
