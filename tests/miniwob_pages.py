"""MiniWoB++ in tests: whether it can be played here, tasks, scripted episodes, what runs of Chromium."""

import contextlib
import pathlib
import time

import pytest

from evolving_rl_jax.envs.miniwob import chromium
from evolving_rl_jax.envs.miniwob.families import steps
from evolving_rl_jax.envs.miniwob.solvers import SCRIPTS, Lost, View
from evolving_rl_jax.types import Task

LACK = chromium.missing()
browsed = pytest.mark.skipif(bool(LACK), reason=LACK)


def task(family, seed=0):
    meta = {"family": family, "seed": seed, "answers": []}
    name = f"{family}/{seed}"
    return Task(name, "miniwob", "train", family, "", name, f"hash of {name}", meta=meta)


def play(env, family, seed):
    """Answers of a family's script, and whether it won."""
    reply = env.reset(task(family, seed))
    answers = [reply.text]
    sentence = reply.text.partition("\n")[0].removeprefix("Task: ")
    script = SCRIPTS[family](sentence, View(reply.text))
    with contextlib.suppress(Lost, StopIteration, RuntimeError, IndexError):
        action = next(script)
        for _ in range(steps(family)):
            reply = env.step(action.to_json())
            answers.append(reply.text)
            if reply.done:
                break
            action = script.send(View(reply.text))
    return answers, getattr(reply, "won", False)


def browsers():
    """Processes of Chromium and its driver that play miniwob's pages: pid -> parent."""
    found = {}
    for folder in pathlib.Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                line = (folder / "cmdline").read_bytes()
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if (b"chrom" in line.split(b"\0")[0]) and fields[0] not in "ZX":
                found[int(folder.name)] = int(fields[1])
    return found


def gone(before, seconds=30.0):
    """Whether all browsers that were not there before end within some seconds."""
    end = time.monotonic() + seconds
    while browsers().keys() - before and time.monotonic() < end:
        time.sleep(0.1)
    return not browsers().keys() - before
