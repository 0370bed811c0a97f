"""Plays episodes with a policy behind an OpenAI-compatible chat endpoint.

`ChatDriver` has the ``play`` and ``run`` of `rollout.episode.Driver`, with messages instead of
token ids.  An episode that gets no answer, after all attempts, ends with a status that leaves it
out, and so does one that the endpoint refuses; one that has become too long for the endpoint is TRUNCATED, as on our own engine; what the model
says, however odd, is played.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

from evolving_rl_jax.envs import benchmark
from evolving_rl_jax.eval.transfer.client import ChatClient, EndpointError, Refused, TooLong
from evolving_rl_jax.rollout.prompts import following
from evolving_rl_jax.types import OK, TIMEOUT, TRUNCATED, Episode, Task, Turn, worth

_DOWN_AFTER = 5  # episodes in a row without any answer that end the run
_POLL_S = 0.02
_SAID_NOTHING = "(no answer)"  # endpoints refuse a message without text


@dataclasses.dataclass
class _Play:
    task: Task
    skill_text: str
    on_done: Callable
    seen: list[tuple[str, tuple[str, ...]]] = dataclasses.field(default_factory=list)
    said: list[str] = dataclasses.field(default_factory=list)
    turns: list[Turn] = dataclasses.field(default_factory=list)
    observation: str = ""
    rewards: list[float] = dataclasses.field(default_factory=list)
    infos: list[dict[str, Any] | None] = dataclasses.field(default_factory=list)


class ChatDriver:
    """Moves episodes forward until all are done, as `rollout.episode.Driver` does.

    Args:
      client: of the endpoint.
      pool: an ``envs.pool.pool.EnvPool``.
      max_steps: most turns of an episode; a task with a smaller limit of its own keeps it.
      recent_turns: turns before the present one that a prompt shows, see
        `rollout.contexts.RecentContext`; None = all.
      show_actions: at which turns admissible actions are listed, ``config.rollout.show_actions``.
    """

    def __init__(
        self,
        client: ChatClient,
        pool,
        max_steps: int,
        recent_turns: int | None = None,
        show_actions: str = "all",
    ):
        self.client, self.pool, self.max_steps = client, pool, max_steps
        self.show_actions = show_actions
        self.recent_turns = recent_turns
        self.finished = 0
        self._waiting: list[tuple[int, _Play]] = []
        self._plays: dict[int, _Play] = {}
        self._failed_in_a_row = 0

    def play(self, key: int, task: Task, skill_text: str, on_done) -> None:
        """Adds an episode; ``on_done(episode, None)`` is called when it ends."""
        self._waiting.append((key, _Play(task, skill_text, on_done)))

    def run(self, progress: Callable[[int], Any] | None = None) -> None:
        """Returns when nothing is left to do.

        Raises:
          BudgetSpent: the cap is reached; what had ended by then has been reported.
          EndpointError: the endpoint refuses, or ``_DOWN_AFTER`` episodes in a row got no answer (not
            even to their first prompt, where that was too long).
        """
        slots = self.client.settings.concurrency
        asked: dict[concurrent.futures.Future, int] = {}
        executor = concurrent.futures.ThreadPoolExecutor(slots)
        try:
            while self._waiting or self._plays:
                while self._waiting and len(self._plays) < slots:
                    key, play = self._waiting.pop(0)
                    self._plays[key] = play
                    self.pool.reset(key, play.task)
                self.pool.flush()
                for key, result in sorted(self.pool.poll(_POLL_S), key=lambda r: r[0]):
                    if self._on_reply(key, result):
                        messages = self._messages(self._plays[key])
                        asked[executor.submit(self.client.complete, messages)] = key
                done, _ = concurrent.futures.wait(asked, timeout=_POLL_S if asked else 0,
                                                  return_when="FIRST_COMPLETED")  # fmt: skip
                for future in sorted(done, key=asked.get):
                    self._on_answer(asked.pop(future), future)
                if progress:
                    progress(self.finished)
        finally:
            for key in self._plays:
                self.pool.close(key)
            self._plays.clear()
            self.client.close()
            executor.shutdown(cancel_futures=True)

    def _on_reply(self, key: int, result) -> bool:
        """Takes what the environment says; returns whether the policy must be asked."""
        play = self._plays[key]
        if result.status != OK:
            self._finish(key, False, result.status, result.text)
            return False
        if play.turns:
            play.rewards.append(result.reward)
            play.infos.append(result.info)
        play.seen.append((result.text, tuple(result.actions)))
        play.observation = result.text
        if getattr(result, "done", False) or len(play.turns) >= self._limit(play.task):
            over = getattr(result, "done", False)
            won = bool(getattr(result, "won", False))
            self._finish(key, won, OK if over else TRUNCATED)
            return False
        return True

    def _messages(self, play: _Play) -> list[dict[str, str]]:
        """The prompt of the next turn, in the words of the task's own benchmark."""
        texts = benchmark(play.task.env).texts.chat
        turns = len(play.said) if self.recent_turns is None else self.recent_turns
        first = max(0, len(play.said) - turns)
        system = texts.system(play.skill_text, show_actions=self.show_actions)
        messages = [{"role": "system", "content": system}]
        observation, actions = play.seen[first]
        shown = () if self.show_actions == "none" else actions
        messages.append(_user(texts.opening(play.task, observation, shown)))
        pairs = itertools.pairwise(play.seen[first:])
        for said, ((_, before), seen) in zip(play.said[first:], pairs, strict=True):
            messages.append({"role": "assistant", "content": said})
            messages.append(_user(following(texts, self.show_actions, *seen, before)))
        return messages

    def _limit(self, task: Task) -> int:
        return min(self.max_steps, task.step_limit)

    def _on_answer(self, key: int, future: concurrent.futures.Future) -> None:
        play = self._plays[key]
        try:
            text = future.result()
        except (TimeoutError, TooLong, Refused) as error:
            too_long = isinstance(error, TooLong)
            self._failed_in_a_row += not (too_long and play.turns)
            self._finish(key, False, TRUNCATED if too_long else TIMEOUT, str(error))
            if self._failed_in_a_row >= _DOWN_AFTER:
                raise EndpointError(
                    f"{self.client.settings.base_url} must answer, got {_DOWN_AFTER} episodes in a "
                    f"row without: {error}"
                ) from None
            return
        self._failed_in_a_row = 0
        said = without_thoughts(text)
        action, valid = benchmark(play.task.env).texts.chat.parse(said)
        play.turns.append(Turn(play.observation, text, action, valid))
        play.said.append(said or text or _SAID_NOTHING)
        self.pool.step(key, action)

    def _finish(self, key: int, won: bool, status: str, error: str = "") -> None:
        play = self._plays.pop(key)
        self.pool.close(key)
        self.finished += 1
        episode = Episode(
            task=play.task, turns=play.turns, won=won, status=status, samples=[],
            reward=worth(play.rewards, won), skill_text=play.skill_text,
            last_observation=play.observation, error=error, rewards=play.rewards, infos=play.infos,
        )  # fmt: skip
        play.on_done(episode, None)


def without_thoughts(text: str) -> str:
    """What a reasoning model says after it has thought: an action named in ``<think>`` is none.

    >>> without_thoughts("<think>I could <action>look</action></think> <action>open fridge 1</action>")
    '<action>open fridge 1</action>'
    >>> without_thoughts("so <action>look</action>?</think>go")  # the opening tag is part of some prompts
    'go'
    >>> without_thoughts("<think>I never came to an end")
    ''
    """
    if "<think>" not in text and "</think>" not in text:
        return text
    return text.rpartition("</think>")[2].partition("<think>")[0].strip()


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}
