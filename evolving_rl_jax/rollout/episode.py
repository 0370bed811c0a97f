"""Plays episodes and extractions: many at once, over one engine and one pool of environments.

The driver is event driven.  An episode is a small state machine (observe -> generate -> act); the driver
moves every one of them as far as it can go, then lets the engine decode a window.  With ``sync=True`` it
waits for all environment replies before the engine goes on, which makes a run reproducible bit for bit on
CPU; with ``sync=False`` slots decode while others wait for their environment.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import numpy as np

from evolving_rl_jax.types import (
    OK,
    SCORED,
    TRUNCATED,
    Episode,
    Sample,
    Task,
    Turn,
)


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

    @classmethod
    def from_config(cls, rollout, **changes) -> PlaySettings:
        """Takes the fields of the same names from ``config.rollout``."""
        names = [f.name for f in dataclasses.fields(cls)]
        return cls(**{n: changes.get(n, rollout[n]) for n in names})


class Transcript:
    """The tokens of one sequence, with the mask and log-probabilities of the sampled ones."""

    def __init__(self):
        self.tokens: list[np.ndarray] = []
        self.mask: list[np.ndarray] = []
        self.logprobs: list[np.ndarray] = []
        self.sampling: list[np.ndarray] = []

    def append_forced(self, ids) -> None:
        """Adds tokens that the policy was given."""
        zeros = np.zeros(len(ids), np.float32)
        self._append(np.asarray(ids, np.int32), zeros, zeros, zeros)

    def append_sampled(self, ids, logprobs, sampling_logprobs) -> None:
        """Adds tokens that the policy sampled."""
        self._append(
            np.asarray(ids, np.int32), np.ones(len(ids), np.float32), logprobs, sampling_logprobs
        )

    def _append(self, ids, mask, logprobs, sampling):
        self.tokens.append(ids)
        self.mask.append(mask)
        self.logprobs.append(np.asarray(logprobs, np.float32))
        self.sampling.append(np.asarray(sampling, np.float32))

    def drop_last(self) -> None:
        """Takes the last addition back."""
        for parts in (self.tokens, self.mask, self.logprobs, self.sampling):
            parts.pop()

    @property
    def last_id(self) -> int | None:
        """The last token, or None when there is none."""
        return next((int(part[-1]) for part in reversed(self.tokens) if len(part)), None)

    def sample(self) -> Sample:
        """The sequence so far as arrays."""

        def join(parts, dtype):
            return np.concatenate(parts) if parts else np.zeros(0, dtype)

        return Sample(
            tokens=join(self.tokens, np.int32),
            loss_mask=join(self.mask, np.float32),
            logprobs=join(self.logprobs, np.float32),
            sampling_logprobs=join(self.sampling, np.float32),
        )


@dataclasses.dataclass
class _Play:
    """An episode under way."""

    key: int
    task: Task
    skill_text: str
    on_done: Callable
    keep_session: bool
    session: object = None
    transcript: Transcript = dataclasses.field(default_factory=Transcript)
    turns: list[Turn] = dataclasses.field(default_factory=list)
    observation: str = ""
    reward: float = 0.0


@dataclasses.dataclass
class _Extraction:
    """One candidate skill being written."""

    source: _Play
    transcript: Transcript
    on_done: Callable


class Driver:
    """Moves episodes and extractions forward until all are done.

    Args:
      engine: a ``generate.Engine``.
      pool: an ``envs.workers.EnvPool``.
      prompts: a style of ``rollout.prompts``.
      settings: how to play.
      iteration: first part of every sampling key; the second is the episode's ``key``.
    """

    def __init__(self, engine, pool, prompts, settings: PlaySettings, *, iteration: int):
        self.engine, self.pool, self.prompts, self.settings = engine, pool, prompts, settings
        self.iteration = iteration
        self.environment_seconds = 0.0
        self.finished = 0
        self._plays: dict[int, _Play] = {}
        self._sessions: dict[object, _Play | _Extraction] = {}
        self._waiting_env: set[int] = set()

    def play(
        self, key: int, task: Task, skill_text: str, on_done, *, keep_session: bool = False
    ) -> None:
        """Starts an episode; ``on_done(episode, handle)`` is called when it ends.

        With ``keep_session`` the handle can be given to :meth:`extract`; otherwise it is ``None``.
        """
        self._plays[key] = _Play(key, task, skill_text, on_done, keep_session)
        self.pool.reset(key, task)
        self._waiting_env.add(key)

    def extract(self, handle: _Play, won: bool, keys: list[int], on_done) -> None:
        """Samples one skill for each key from a finished source episode: ``on_done(i, text, sample)``."""
        prompt = self.prompts.extractor_prompt(
            won, handle.observation, last_id=handle.transcript.last_id
        )
        sessions = self.engine.fork(handle.session, len(keys), keys)
        for i, session in enumerate(sessions):
            transcript = Transcript()
            transcript.append_forced(handle.transcript.sample().tokens)
            transcript.append_forced(prompt)
            self._sessions[session] = _Extraction(
                handle, transcript, lambda text, sample, i=i: on_done(i, text, sample)
            )
            self._generate(session, prompt, self.settings.max_skill_tokens)

    def release(self, handle: _Play) -> None:
        """Gives back the slot of a session kept by ``play(keep_session=True)``."""
        if handle.session is not None:
            self.engine.close(handle.session)
            handle.session = None

    def run(self, progress: Callable[[int], None] | None = None) -> None:
        """Returns when nothing is left to do (callbacks may have started more)."""
        while self._plays or self._sessions:
            self._receive()
            for generation in sorted(self.engine.step(), key=lambda g: g.session.episode):
                self._on_generation(generation)
            if progress:
                progress(self.finished)

    # -- environment side ------------------------------------------------------------------------

    def _receive(self) -> None:
        """Takes environment replies; blocks only when there is nothing else to do, or in sync mode."""
        start = time.perf_counter()
        self.pool.flush()
        while self._waiting_env:
            block = self.settings.sync or not self.engine.busy
            replies = self.pool.poll(None if block else 0.0)
            # The faster worker must not decide who gets a slot first, so in sync mode nothing is
            # acted on before all answers are in.
            while self.settings.sync and len(replies) < len(self._waiting_env):
                more = self.pool.poll(None)
                if not more:
                    lost = len(self._waiting_env) - len(replies)
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

    def _on_reply(self, play: _Play, result) -> None:
        if result.status != OK:
            self._finish(play, won=False, status=result.status, error=result.text)
        elif play.session is None:
            play.session = self.engine.open(self.iteration, play.key)
            self._sessions[play.session] = play
            prompt = self.prompts.solver_prompt
            ids = prompt(play.task, play.skill_text, result.text, result.actions)
            self._turn(play, ids, result.text)
        elif result.done or len(play.turns) >= self._limit(play.task):
            play.observation, play.reward = result.text, result.reward
            self._finish(play, won=result.won, status=OK if result.done else TRUNCATED)
        else:
            last_id = play.transcript.last_id
            ids = self.prompts.next_turn(result.text, result.actions, last_id=last_id)
            self._turn(play, ids, result.text)

    def _limit(self, task: Task) -> int:
        return min(self.settings.max_steps, task.step_limit)

    # -- engine side -----------------------------------------------------------------------------

    def _turn(self, play: _Play, ids: list[int], observation: str) -> None:
        play.observation = observation
        play.transcript.append_forced(ids)
        self._generate(play.session, ids, self.settings.max_turn_tokens)

    def _generate(self, session, ids: list[int], max_new_tokens: int) -> None:
        s = self.settings
        self.engine.submit(
            session,
            ids,
            max_new_tokens=max_new_tokens,
            temperature=s.temperature,
            top_p=s.top_p,
            top_k=s.top_k,
            stop_ids=self.prompts.stop_ids,
        )

    def _on_generation(self, generation) -> None:
        owner = self._sessions[generation.session]
        if generation.reason == "overflow" and not len(generation.tokens):
            owner.transcript.drop_last()  # it did not fit, so the policy never read it
        owner.transcript.append_sampled(
            generation.tokens, generation.logprobs, generation.sampling_logprobs
        )
        text = self.prompts.tokenizer.decode(
            _without_stop(generation.tokens, self.prompts.stop_ids)
        )
        if isinstance(owner, _Extraction):
            del self._sessions[generation.session]
            self.engine.close(generation.session)
            owner.on_done(text, owner.transcript.sample())
            return
        action, valid = self.prompts.parse_action(text)
        owner.turns.append(Turn(owner.observation, text, action, valid))
        if generation.reason == "overflow":
            self._finish(owner, won=False, status=TRUNCATED)
            return
        self._waiting_env.add(owner.key)
        self.pool.step(owner.key, action)

    def _finish(self, play: _Play, *, won: bool, status: str, error: str = "") -> None:
        del self._plays[play.key]
        self._sessions.pop(play.session, None)
        self.pool.close(play.key)
        if not play.keep_session or status not in SCORED:
            self.release(play)
        self.finished += 1
        episode = Episode(
            task=play.task,
            turns=play.turns,
            won=won,
            status=status,
            sample=play.transcript.sample(),
            reward=play.reward if play.reward else float(won),
            skill_text=play.skill_text,
            last_observation=play.observation,
            error=error,
        )
        play.on_done(episode, play if play.session is not None else None)


def _without_stop(tokens: np.ndarray, stop_ids) -> np.ndarray:
    return tokens[:-1] if len(tokens) and int(tokens[-1]) in stop_ids else tokens
