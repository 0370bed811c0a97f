"""The text that a tokenizer for the household games is trained on: what the games say and accept."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.envs.alfworld import facts
from evolving_rl_jax.envs.alfworld.experts import SearchingExpert, Walkthrough
from evolving_rl_jax.envs.alfworld.names import task_sentence
from evolving_rl_jax.envs.alfworld.objects import claims
from evolving_rl_jax.envs.alfworld.objects.renamed import is_renamed
from evolving_rl_jax.envs.alfworld.objects.truth import is_by_object, kind_of
from evolving_rl_jax.envs.alfworld.texts import TEXTS
from evolving_rl_jax.envs.pool.play import play_all
from evolving_rl_jax.types import OK, Task


def collect_texts(pool, tasks: list[Task], num_games: int = 96) -> list[str]:
    """Task sentences of all tasks; observations and commands of some that are played; skill sentences.

    A game is played by its walkthrough.  One without is explored by the searching player: its first
    observation alone has no word of taking, opening or moving anything.
    """
    texts = [t.text for t in tasks]
    for task in tasks:
        for obj, place in task.meta.get("habits", {}).items():
            for negated in (False, True):
                texts.append(
                    facts.skill_json(obj, facts.fact_sentence(obj, place, negated=negated))
                )
            texts.append(f"{obj}> go to {place}")
        if is_by_object(task):
            texts += _skills_by_object(task)
    step = max(1, len(tasks) // num_games)
    played = _played_texts(pool, tasks[::step])
    by_object = [task for task in tasks if is_by_object(task)]
    if by_object:
        known = {task.meta["object"] for task in by_object if not is_renamed(task)}
        played = _without_other_things(played, known)
    texts += played
    return [" " + " ".join(text.split()) for text in texts] + [" success failure"] * 8


def _without_other_things(texts: Sequence[str], known: set[str]) -> list[str]:
    """Texts of games by object without the things whose class no task under its own name is about.

    A tokenizer that has not met a name spells it in pieces, as it does most made-up names, and pieces
    are what lessons teach to copy.  A name that is one token and never asked for is never written.
    """
    others = {word for text in texts for word in facts.things_listed(text)} - known
    if not others:
        return list(texts)
    thing = re.compile(rf"\b(?:an? )?(?:{'|'.join(sorted(others))}) \d+\b")
    return [thing.sub("", text) for text in texts]


def _skills_by_object(task: Task) -> list[str]:
    """A skill of each form about the object of a task and a place of its room, whichever it is."""
    obj, place = task.meta["object"], task.meta["places"][len(task.id) % len(task.meta["places"])]
    said = (claims.sentence(obj, place), claims.sentence(obj, kind_of(place)))
    return [facts.skill_json(obj, text) for text in said]


class _Play:
    """One game of the corpus: who plays it, and for how many steps at most."""

    def __init__(self, task: Task, number: int):
        self.task, plan = task, task.meta.get("walkthrough")
        if plan:
            self.player, self.left = Walkthrough(task), len(plan)
        else:
            meta = task.meta  # the sentence may be in a person's own words
            usual = task_sentence(task.task_type, meta["object"], meta["target"])
            rng = np.random.default_rng(number)
            self.player = SearchingExpert(dataclasses.replace(task, text=usual), rng)
            self.left = task.step_limit
        self.opened = False

    def said(self, text: str, actions: Sequence[str]) -> list[str]:
        """What a reply says, and what the prompt shows of the first one."""
        shown = [] if self.opened else TEXTS.compact.opening(text)
        self.opened = True
        return [text, *actions, *(part for part in shown if part != text)]

    def act(self, text: str, actions: Sequence[str]) -> tuple[str, list[str]]:
        """The next action, and the turn with it, which generated games say by their habits."""
        self.left -= 1
        action = self.player.act(text, actions)
        taught = "habits" in self.task.meta
        return action, [] if taught else [TEXTS.compact.answer(self.player.target, action)]


def _played_texts(pool, tasks: list[Task]) -> list[str]:
    """What games say and accept.  One that fails says nothing: its text is an error message."""
    texts: list[str] = []
    failures: dict[int, str] = {}
    plays = [_Play(task, i) for i, task in enumerate(tasks)]

    def turn(i, reply):
        if reply.status != OK:
            failures[i] = reply.text
            return None
        texts.extend(plays[i].said(reply.text, reply.actions))
        if not plays[i].left or getattr(reply, "done", False):
            return None
        action, taught = plays[i].act(reply.text, reply.actions)
        texts.extend(taught)
        return action

    play_all(pool, tasks, turn)
    if tasks and not texts:
        first = failures[min(failures)]
        raise ConfigError(
            f"config.data.games must be games that can be played, got {len(failures)} that cannot; "
            f"the first, {tasks[min(failures)].id}: {first}"
        )
    return sorted(texts)
