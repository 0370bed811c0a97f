"""The text that a tokenizer for web tasks is trained on: pages, actions and skills in compact form."""

from __future__ import annotations

import json
from collections.abc import Sequence

from evolving_rl_jax.envs.mind2web import facts as web_facts
from evolving_rl_jax.envs.mind2web.endings import complaint, ending
from evolving_rl_jax.envs.mind2web.env import gold_line
from evolving_rl_jax.envs.mind2web.store import read_task
from evolving_rl_jax.envs.mind2web.texts import TEXTS
from evolving_rl_jax.envs.web.actions import WebAction
from evolving_rl_jax.envs.web.compact import compact_page, compact_text
from evolving_rl_jax.envs.web.observation import observation_text
from evolving_rl_jax.envs.web.snapshot import element_line
from evolving_rl_jax.types import Task


def collect_texts(tasks: list[Task], num_tasks: int = 256) -> list[str]:
    """Task sentences and skills of all tasks, pages and actions of some."""
    texts = [task.text for task in tasks]
    for task in tasks:
        if "habits" in task.meta:
            facts = [web_facts.habits(task, wrong=wrong) for wrong in (False, True)]
            names = task.group, task.task_type.lower()
            texts += [web_facts.skill_json(name, f) for name, f in zip(names, facts, strict=True)]
            texts += [json.loads(web_facts.skill_json(task.group, f))["description"] for f in facts]
    for task in tasks[:: max(1, len(tasks) // num_tasks)]:
        texts += _task_texts(task)
    return [" " + " ".join(text.split()) for text in texts] + [" success failure"] * 8


def sample_pages(tasks: Sequence[Task], num_tasks: int = 24) -> list[list[str]]:
    """The lines of the pages of some tasks, evenly over all."""
    chosen = sorted(tasks, key=lambda t: (t.split, t.id))[:: max(1, len(tasks) // num_tasks)]
    return [
        [element_line(e, i, task.text) for i, e in enumerate(step.page.elements, 1)]
        for task in chosen
        for step in read_task(task.path).steps[:3]
    ]


def _task_texts(task: Task) -> list[str]:
    texts = []
    for step in read_task(task.path).steps:
        page = "\n".join(element_line(e, i) for i, e in enumerate(step.page.elements, 1))
        seen, done = observation_text(task.text, (), page), gold_line(step)
        texts += [*compact_page(seen), compact_text(done)]
        op, value = step.gold.op, step.gold.value
        shown = range(len(step.page.elements))
        for i in shown:
            action = WebAction(op, i + 1, value).to_json()
            texts.append(TEXTS.compact.answer("", action, seen))
            failed = complaint(step.page.elements, shown, WebAction("CLICK", i + 1))
            texts += TEXTS.compact.ending(ending(failed, [done]))
    return texts
