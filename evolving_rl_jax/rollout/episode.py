"""Plays episodes and extractions: many at once, over one engine and one pool of environments.

The driver is event driven.  An episode is a small state machine (observe -> generate -> act); the driver
moves every one of them as far as it can go, then lets the engine decode a window.  With ``sync=True`` it
waits for all environment replies before the engine goes on, which makes a run reproducible bit for bit on
CPU; with ``sync=False`` slots decode while others wait for their environment.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np

from evolving_rl_jax.envs import benchmark
from evolving_rl_jax.rollout.attempts import Attempt, read_attempts
from evolving_rl_jax.rollout.contexts import FullContext, RecentContext, Transcript, make_context
from evolving_rl_jax.types import OK, SCORED, TIMEOUT, TRUNCATED, Episode, Task, Turn, worth


@dataclasses.dataclass(frozen=True)
class PlaySettings:
    """How episodes are played; see ``config.rollout`` for the meaning of each."""

    max_turn_tokens: int
    max_skill_tokens: int
    max_steps: int
    temperature: float
    top_p: float
    top_k: int
    sync: bool = True
    context: str = "full"
    recent_turns: int = 4
    extraction_lines: int = 0
    stop_strings: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, rollout, **changes) -> PlaySettings:
        """Takes the fields of the same names from ``config.rollout``."""
        names = [f.name for f in dataclasses.fields(cls)]
        return cls(**{n: changes.get(n, rollout[n]) for n in names})


@dataclasses.dataclass
class _Play:
    """An episode under way."""

    key: int
    task: Task
    skill_text: str
    on_done: Callable
    keep_session: bool
    context: FullContext | RecentContext
    session: object = None
    turns: list[Turn] = dataclasses.field(default_factory=list)
    observation: str = ""
    rewards: list[float] = dataclasses.field(default_factory=list)
    infos: list[dict | None] = dataclasses.field(default_factory=list)
    began: float | None = None  # when the first turn was answered


@dataclasses.dataclass
class _Extraction:
    """One candidate skill being written."""

    transcript: Transcript
    on_done: Callable


class Driver:
    """Moves episodes and extractions forward until all are done.

    Args:
      engine: a ``generate.Engine``.
      pool: an ``envs.pool.pool.EnvPool``.
      prompts: a style of ``rollout.prompts``.
      settings: how to play.
      iteration: first part of every sampling key; the second is the episode's ``key``.
      clock: seconds; what `types.Episode.began` and ``ended`` are read from.
      keeps_unguided: whether episodes with a skill are kept as they read without it too
        (`types.Episode.without_skill`).

    Attributes:
      environment_seconds: spent in waiting for environments and acting on their replies.
      finished: episodes that ended.
      reused: prompt tokens that the engine's cache held already, by (kind, stage): kind ``turn`` or
        ``prefix`` as in `generate.Session`, stage ``source``, ``extraction`` or ``evaluation``.
      extracted: source turns that extractions of recent contexts had to show (``turns``), those shown
        in part (``turns_shortened``) and not at all (``turns_dropped``); where sources are played
        several times their ``attempts``, and those not shown (``attempts_dropped``).
    """

    def __init__(
        self, engine, pool, prompts, settings: PlaySettings, *, iteration: int,
        clock: Callable[[], float] = time.monotonic, keeps_unguided: bool = False,
    ):  # fmt: skip
        self.engine, self.pool, self.prompts, self.settings = engine, pool, prompts, settings
        self.iteration, self._clock, self._keeps_unguided = iteration, clock, keeps_unguided
        self.environment_seconds = 0.0
        self.finished = 0
        self.reused: collections.Counter = collections.Counter()
        self.extracted: collections.Counter = collections.Counter()
        self._plays: dict[int, _Play] = {}
        self._sessions: dict[object, _Play | _Extraction] = {}
        self._waiting_env: set[int] = set()

    def play(
        self, key: int, task: Task, skill_text: str, on_done, *, keep_session: bool = False
    ) -> None:
        """Starts an episode; ``on_done(episode, handle)`` is called when it ends.

        With ``keep_session`` the handle can be given to :meth:`extract`; otherwise it is ``None``.
        """
        s = self.settings
        context = make_context(
            s.context, s.recent_turns, self.prompts, task, skill_text, s.extraction_lines
        )
        self._plays[key] = _Play(key, task, skill_text, on_done, keep_session, context)
        self.pool.reset(key, task)
        self._waiting_env.add(key)

    def extract(
        self,
        handle: _Play,
        won: bool,
        keys: list[int],
        on_done,
        *,
        before: Sequence[tuple[_Play, bool]] = (),
    ) -> None:
        """Samples one skill for each key from a finished source episode: ``on_done(i, text, sample)``.

        The oldest turns are left out where the skill would have no room after all of them.  Where it
        has none even after the last turn, nothing is sampled: the text is empty and the sample None.

        Args:
          handle: of the episode.
          won: whether it was.
          keys: of sampling, one for each skill.
          on_done: called for each skill.
          before: other attempts at its task that are shown before it, from the one that failed first;
            see `attempts.read_attempts`.
        """
        most = self.settings.max_skill_tokens
        attempts = [
            Attempt(play.context, ended_won, play.observation)
            for play, ended_won in (*before, (handle, won))
        ]
        ids, request, first, counts = read_attempts(
            self.prompts, attempts, self.engine.max_length - most
        )
        self.extracted.update(counts)
        if len(ids) + len(request) >= self.engine.max_length:
            for i in range(len(keys)):
                on_done(i, "", None)
            return
        prompt = ids + request
        if held := first.context.held(ids):
            owner = next(p for p, _ in (*before, (handle, won)) if p.context is first.context)
            sessions = self.engine.fork(owner.session, len(keys), keys)
            prompt = prompt[held:]
        else:  # the engine finds by itself that they share their prompt
            sessions = [self.engine.open(self.iteration, key) for key in keys]
        for i, session in enumerate(sessions):
            transcript = Transcript()
            transcript.append_forced(ids)
            transcript.append_forced(request)
            self._sessions[session] = _Extraction(
                transcript, lambda text, sample, i=i: on_done(i, text, sample)
            )
            self._generate(session, prompt, most, turn=len(handle.turns))

    def release(self, handle: _Play) -> None:
        """Gives back the slot of a session kept by ``play(keep_session=True)``."""
        if handle.session is not None:
            self.engine.close(handle.session)
            handle.session = None

    def run(
        self,
        progress: Callable[[int], None] | None = None,
        stop: Callable[[], str] | None = None,
    ) -> None:
        """Returns when nothing is left to do (callbacks may have started more).

        Args:
          progress: called with the number of finished episodes now and then.
          stop: asked before every decoding window; a reason (not empty) ends all that is unfinished,
            see `abandon`.
        """
        while self._plays or self._sessions:
            reason = stop() if stop else ""
            if reason:
                self.abandon(reason)
                return
            self._receive()
            for generation in sorted(self.engine.step(), key=lambda g: g.session.episode):
                self._on_generation(generation)
            if progress:
                progress(self.finished)

    def abandon(self, reason: str) -> None:
        """Ends unfinished episodes with the status TIMEOUT, marked as ``cut``.

        What that means is for whoever asked for them to say, see `Evolver`.  Unfinished extractions end
        without their callback.
        """
        for session in [s for s, o in self._sessions.items() if isinstance(o, _Extraction)]:
            del self._sessions[session]
            self.engine.close(session)
        while self._plays:  # the end of one may start others
            for key in sorted(self._plays):
                play = self._plays[key]
                if play.session is not None and key not in self._waiting_env:
                    play.context.unread()  # it was still answering
                self._waiting_env.discard(key)
                self._finish(play, won=False, status=TIMEOUT, error=reason, cut=True)

    # -- environment side ------------------------------------------------------------------------

    def _receive(self) -> None:
        """Takes environment replies; blocks only when there is nothing else to do, or in sync mode."""
        start = time.perf_counter()
        self.pool.flush()
        while self._awaited() > 0:
            block = self.settings.sync or not self.engine.busy
            replies = self.pool.poll(None if block else 0.0)
            # The faster worker must not decide who gets a slot first, so in sync mode nothing is
            # acted on before all answers are in.
            while self.settings.sync and (lost := self._awaited() - len(replies)) > 0:
                more = self.pool.poll(None)
                if not more:
                    raise RuntimeError(
                        f"the environment pool must answer every request, lost {lost}"
                    )
                replies += more
            for key, result in sorted(replies, key=lambda r: r[0]):
                self._waiting_env.discard(key)
                self._on_reply(self._plays[key], result)
            self.pool.flush()
            if not self.settings.sync:
                break
        self.environment_seconds += time.perf_counter() - start

    def _awaited(self) -> int:
        """Answers that come without anything more being done here."""
        return len(self._waiting_env) - self.pool.num_waiting

    def _on_reply(self, play: _Play, result) -> None:
        if result.status != OK:
            self._finish(play, won=False, status=result.status, error=result.text)
        elif play.session is None:
            self._open(play)
            self._turn(play, result)
        else:
            self._on_step(play, result)

    def _on_step(self, play: _Play, result) -> None:
        play.rewards.append(result.reward)
        play.infos.append(result.info)
        if result.done or len(play.turns) >= self._limit(play.task):
            play.observation = result.text
            self._finish(play, won=result.won, status=OK if result.done else TRUNCATED)
        else:
            self._turn(play, result)

    def _limit(self, task: Task) -> int:
        return min(self.settings.max_steps, task.step_limit)

    # -- engine side -----------------------------------------------------------------------------

    def _open(self, play: _Play) -> None:
        play.session = self.engine.open(self.iteration, play.key)
        self._sessions[play.session] = play

    def _turn(self, play: _Play, result) -> None:
        play.observation = result.text
        ids, anew = play.context.observe(result.text, result.actions)
        if anew:
            del self._sessions[play.session]
            self.engine.close(play.session)
            self._open(play)
        s = self.settings
        self._generate(
            play.session, ids, s.max_turn_tokens, turn=len(play.turns), stop_strings=s.stop_strings
        )

    def _generate(self, session, ids, max_new_tokens: int, *, turn: int, stop_strings=()) -> None:
        s = self.settings
        self.engine.submit(
            session,
            ids,
            max_new_tokens=max_new_tokens,
            temperature=s.temperature,
            top_p=s.top_p,
            top_k=s.top_k,
            stop_ids=self.prompts.stop_ids,
            stop_strings=stop_strings,
            turn=turn,
        )

    def _on_generation(self, generation) -> None:
        owner = self._sessions[generation.session]
        self._count_reused(owner, generation)
        unread = generation.reason == "overflow" and not len(generation.tokens)
        sampled = (
            generation.tokens,
            generation.logprobs,
            generation.sampling_logprobs,
            generation.floor_logprobs,
        )
        text = self.prompts.tokenizer.decode(
            _without_stop(generation.tokens, self.prompts.stop_ids)
        )
        if isinstance(owner, _Extraction):
            owner.transcript.append_sampled(*sampled)
            del self._sessions[generation.session]
            self.engine.close(generation.session)
            owner.on_done(text, owner.transcript.sample())
            return
        if unread:
            owner.context.unread()
            if self._plays_on(owner):  # a step that failed, and nothing to train on
                owner.turns.append(Turn(owner.observation, "", "", False))
                self._act(owner, "")
            else:  # no turn: the policy never saw it
                self._finish(owner, won=False, status=TRUNCATED)
            return
        if owner.began is None:
            owner.began = self._clock()
        owner.context.act(*sampled)
        action, valid = self.prompts.parse_action(text, owner.observation)
        owner.context.acted(action)
        owner.turns.append(Turn(owner.observation, text, action, valid))
        if generation.reason == "overflow":
            if not self._plays_on(owner):
                self._finish(owner, won=False, status=TRUNCATED)
                return
            action = ""  # no answer: a step that failed
        self._act(owner, action)

    def _act(self, play: _Play, action: str) -> None:
        self._waiting_env.add(play.key)
        self.pool.step(play.key, action)

    def _plays_on(self, play: _Play) -> bool:
        """Whether an observation that did not fit is one failed step, and the next one may fit."""
        if self.settings.context != "recent":
            return False
        return benchmark(play.task.env).plays_on(play.task, self.pool.options)

    def _count_reused(self, owner, generation) -> None:
        stage = "extraction"
        if isinstance(owner, _Play):
            stage = "source" if owner.keep_session else "evaluation"
        self.reused["turn", stage] += generation.turn_reused
        self.reused["prefix", stage] += generation.prefix_reused

    def _finish(
        self, play: _Play, *, won: bool, status: str, error: str = "", cut: bool = False
    ) -> None:
        del self._plays[play.key]
        self._sessions.pop(play.session, None)
        self.pool.close(play.key)
        if not play.keep_session or status not in SCORED:
            self.release(play)
        elif play.session is not None:
            self.engine.park(play.session)
        self.finished += 1
        ended = self._clock()
        unguided = self._keeps_unguided and play.skill_text
        episode = Episode(
            task=play.task,
            turns=play.turns,
            won=won,
            status=status,
            samples=play.context.samples(),
            reward=worth(play.rewards, won),
            skill_text=play.skill_text,
            last_observation=play.observation,
            error=error,
            rewards=play.rewards,
            infos=play.infos,
            began=ended if play.began is None else play.began,
            ended=ended,
            cut=cut,
            without_skill=play.context.without_skill() if unguided else [],
        )
        play.on_done(episode, play if play.session is not None else None)


def _without_stop(tokens: np.ndarray, stop_ids) -> np.ndarray:
    return tokens[:-1] if len(tokens) and int(tokens[-1]) in stop_ids else tokens
