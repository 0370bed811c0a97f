"""Test doubles of a tokenizer, an environment pool and a generation engine; all deterministic."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random

import numpy as np

from evolving_rl_jax.envs.alfworld.texts import TEXTS
from evolving_rl_jax.generate.sessions import Generation
from evolving_rl_jax.rollout.prompts import COMPACT_SPECIAL_TOKENS, CompactPrompts
from evolving_rl_jax.types import ENV_ERROR, OK, Observation, StepResult, Task


class ByteTokenizer:
    """Special tokens first, then one token a byte."""

    def __init__(self):
        self.special_ids = {t: i for i, t in enumerate(COMPACT_SPECIAL_TOKENS)}
        self.pad_id, self.eos_id = 0, 1
        self.stop_ids = (self.eos_id,)
        self.vocab_size = len(COMPACT_SPECIAL_TOKENS) + 256

    def encode(self, text):
        return [b + len(COMPACT_SPECIAL_TOKENS) for b in text.encode()]

    def decode(self, ids):
        first = len(COMPACT_SPECIAL_TOKENS)
        return bytes(i - first for i in ids if i >= first).decode("utf-8", "replace")


def compact_prompts() -> CompactPrompts:
    return CompactPrompts(ByteTokenizer(), TEXTS.compact)


def make_task(name: str, **changes) -> Task:
    fields = {
        "id": name,
        "env": "alfworld",
        "split": "train",
        "task_type": "pick",
        "text": f"find {name}",
        "path": f"/{name}",
        "content_hash": f"hash-{name}",
        "step_limit": 5,
    }
    return Task(**{**fields, **changes})


class FakePool:
    """An environment in which the action ``win`` wins and ``lose`` ends the episode.

    Args:
      fail: episode key -> number of answers after which it answers with an error (0 = at reset).
      seed: answers come in a random order and in random portions.
    """

    def __init__(self, fail=None, seed=0):
        self.fail, self.rng = dict(fail or {}), random.Random(seed)
        self.respawns, self.quarantined = 0, {}
        self.options: dict = {}
        self.num_waiting = 0
        self.running: dict[int, tuple[Task, int]] = {}
        self.pending: list[tuple[int, Observation | StepResult]] = []
        self.actions: dict[int, list[str]] = {}
        self.tasks: dict[int, Task] = {}

    def reset(self, key, task):
        assert key not in self.running, "started twice"
        self.tasks[key], self.actions[key] = task, []
        self.running[key] = task, 0
        self._answer(key, Observation(f"room of {task.id}", ("win", "look")))

    def step(self, key, action):
        assert all(key != other for other, _ in self.pending), "two requests at a time"
        self.actions[key].append(action)
        won, done = action == "win", action in ("win", "lose")
        text = f"{action} {len(self.actions[key])}"
        self._answer(key, StepResult(text, ("win", "look"), float(won), done, won))

    def _answer(self, key, result):
        task, count = self.running[key]
        self.running[key] = task, count + 1
        if self.fail.get(key) == count:
            del self.running[key]
            observation = Observation("broke", (), ENV_ERROR)
            step = StepResult("broke", (), 0.0, False, False, ENV_ERROR)
            result = observation if count == 0 else step
        self.pending.append((key, result))

    def flush(self):
        pass

    def poll(self, timeout=None):
        self.rng.shuffle(self.pending)
        least = 1 if timeout is None else 0
        count = self.rng.randint(min(least, len(self.pending)), len(self.pending))
        ready, self.pending = self.pending[:count], self.pending[count:]
        return ready

    def close(self, key):
        self.running.pop(key, None)
        self.pending = [(k, r) for k, r in self.pending if k != key]


@dataclasses.dataclass(eq=False)
class FakeSession:
    """``parts``: (sampled or not, ids, logprobs) in the order in which they came."""

    iteration: int
    episode: int
    parts: list = dataclasses.field(default_factory=list)
    turn: int = 0

    def flat(self, i, dtype):
        return np.concatenate([np.asarray(p[i], dtype) for p in self.parts] or [np.zeros(0, dtype)])

    @property
    def tokens(self):
        return self.flat(1, np.int32)

    @property
    def mask(self):
        return np.concatenate([np.full(len(p[1]), float(p[0])) for p in self.parts] or [[]])

    @property
    def logprobs(self):
        return self.flat(2, np.float32)


class FakeEngine:
    """Says what ``speak(episode, turn)`` returns, cut as the real engine cuts it.

    Attributes:
      sessions: episode -> its session, the last one of that number.
      open_now: sessions not closed.
      log: every call that the driver made, in order.
    """

    def __init__(self, tokenizer, speak, max_length=10_000, window=2):
        self.tokenizer, self.speak = tokenizer, speak
        self.max_length, self.window = max_length, window
        self.sessions: dict[int, FakeSession] = {}
        self.open_now: set[FakeSession] = set()
        self.log: list[tuple] = []
        self._waiting: list[tuple[FakeSession, str, int]] = []

    @property
    def busy(self):
        return bool(self._waiting)

    def open(self, iteration, episode):
        session = FakeSession(iteration, episode)
        self.sessions[episode] = session
        self.open_now.add(session)
        self.log.append(("open", iteration, episode))
        return session

    def fork(self, session, n, episodes):
        assert len(episodes) == n and session in self.open_now
        forks = [self.open(session.iteration, e) for e in episodes]
        for fork in forks:
            fork.parts, fork.turn = [(0, session.tokens, 0 * session.logprobs)], session.turn
        return forks

    def park(self, session):
        assert session in self.open_now

    def close(self, session):
        self.open_now.discard(session)
        self.log.append(("close", session.episode))

    def submit(
        self,
        session,
        ids,
        *,
        max_new_tokens,
        temperature,
        top_p,
        top_k,
        stop_ids,
        stop_strings=(),
        turn=None,
    ):
        assert session in self.open_now and stop_ids == self.tokenizer.stop_ids
        session.turn = session.turn if turn is None else turn
        self.log.append(("submit", session.episode, tuple(ids), max_new_tokens, temperature))
        room = self.max_length - len(session.tokens) - len(ids)
        if room > 0:
            session.parts.append((0, np.asarray(ids, np.int32), np.zeros(len(ids), np.float32)))
        self._waiting.append((session, max_new_tokens, room))

    def step(self):
        now, self._waiting = self._waiting[: self.window], self._waiting[self.window :]
        return [self._generate(*item) for item in now][::-1]

    def _generate(self, session, limit, room):
        text = self.speak(session.episode, session.turn)
        ids = np.array([*self.tokenizer.encode(text), self.tokenizer.eos_id], np.int32)
        ids = ids[: max(0, min(limit, room))]
        reason = "overflow" if room < limit else "length"
        if len(ids) and ids[-1] == self.tokenizer.eos_id:
            reason = "stop"
        logprobs = -(ids + 1.0).astype(np.float32) / (session.turn + 2)
        session.parts.append((1, ids, logprobs))
        session.turn += 1
        return Generation(session, ids, logprobs, logprobs / 2, reason, floor_logprobs=logprobs * 2)


def digest(demonstrations) -> str:
    """What demonstrations teach, in 16 characters: their ids and masks."""
    hashed = hashlib.sha256()
    for sample in (s for d in demonstrations for s in d.samples):
        hashed.update(sample.tokens.astype("<i4").tobytes())
        hashed.update(sample.loss_mask.astype("<f4").tobytes())
    return hashed.hexdigest()[:16]


def skill_text(name="a skill", description="the mug is in cabinet 3") -> str:
    return json.dumps({"name": name, "description": description}, ensure_ascii=False)


def scored_status(status: str) -> bool:
    return status in (OK, "truncated")
