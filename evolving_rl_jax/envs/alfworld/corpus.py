"""The text that a tokenizer for the household games is trained on: what the games say and accept."""

from __future__ import annotations

from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.envs.alfworld import facts
from evolving_rl_jax.types import OK, Task


def collect_texts(pool, tasks: list[Task], num_games: int = 96) -> list[str]:
    """Task sentences of all tasks; observations and commands of walkthroughs of some; skill sentences."""
    texts = [t.text for t in tasks]
    for task in tasks:
        for obj, place in task.meta.get("habits", {}).items():
            for negated in (False, True):
                texts.append(
                    facts.skill_json(obj, facts.fact_sentence(obj, place, negated=negated))
                )
            texts.append(f"{obj}> go to {place}")
    step = max(1, len(tasks) // num_games)
    texts += _walkthrough_texts(pool, tasks[::step])
    return [" " + " ".join(text.split()) for text in texts] + [" success failure"] * 8


def _walkthrough_texts(pool, tasks: list[Task]) -> list[str]:
    """What games say and accept.  One that fails says nothing: its text is an error message."""
    texts: list[str] = []
    failures: dict[int, str] = {}
    plans = {i: list(t.meta.get("walkthrough", ())) for i, t in enumerate(tasks)}
    for i, task in enumerate(tasks):
        pool.reset(i, task)
    running = set(plans)
    while running:
        pool.flush()
        for i, reply in pool.poll(None):
            if reply.status == OK:
                texts += [reply.text, *reply.actions]
            else:
                failures[i] = reply.text
            if reply.status != OK or not plans[i] or getattr(reply, "done", False):
                pool.close(i)
                running.discard(i)
            else:
                pool.step(i, plans[i].pop(0))
    if tasks and not texts:
        first = failures[min(failures)]
        raise ConfigError(
            f"config.data.games must be games that can be played, got {len(failures)} that cannot; "
            f"the first, {tasks[min(failures)].id}: {first}"
        )
    return sorted(texts)
