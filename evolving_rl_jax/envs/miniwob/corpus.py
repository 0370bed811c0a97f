"""The text that a tokenizer is trained on: pages, actions and skills in compact form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evolving_rl_jax.envs.base import TaskError
from evolving_rl_jax.envs.miniwob.skills import HOW, VAGUE
from evolving_rl_jax.envs.miniwob.solvers import SCRIPTS
from evolving_rl_jax.envs.miniwob.teacher import ScriptTeacher
from evolving_rl_jax.envs.miniwob.texts import TEXTS
from evolving_rl_jax.envs.pool.play import play_all
from evolving_rl_jax.types import OK, Task

__all__ = ["collect_texts"]


def collect_texts(pool, tasks: Sequence[Task], num_tasks: int = 128) -> list[str]:
    """Sentences of all tasks, and one episode of some of them as the compact prompts show it.

    Raises:
      TaskError: none of them can be played.
    """
    compact = TEXTS.compact
    scripted = [t for t in tasks if t.meta["family"] in SCRIPTS]
    chosen = scripted[:: max(1, len(scripted) // num_tasks)]
    teachers = [ScriptTeacher(t, np.random.default_rng(i)) for i, t in enumerate(chosen)]
    left = [t.step_limit for t in chosen]
    read: list[list[str]] = [[] for _ in chosen]
    failures: dict[int, str] = {}

    def turn(i, reply):
        if reply.status != OK:
            failures[i] = reply.text
            return None
        if getattr(reply, "done", False) or not left[i]:
            return None
        left[i] -= 1
        action = teachers[i].act(reply.text, ())
        said = compact.answer(teachers[i].target, action, reply.text)
        read[i] += [*compact.opening(reply.text), said]
        return action

    play_all(pool, chosen, turn)
    if len(failures) == len(chosen):
        said = failures[0] if failures else "no family of theirs has a script"
        raise TaskError(f"no task can be played: {said}")
    families = {t.meta["family"] for t in tasks}
    skills = [f"{f.replace('-', ' ')} {HOW[f]}" for f in sorted(families & set(HOW))]
    texts = [*(t.text for t in tasks), *[*skills, VAGUE] * 8, *(text for of in read for text in of)]
    return [" " + " ".join(text.split()) for text in texts] + [" success failure"] * 8
