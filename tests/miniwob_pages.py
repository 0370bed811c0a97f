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


def descendants(pid):
    """Processes that a process has started, and theirs: {(pid, time of start): command line}."""
    found, parents = {}, {}
    for folder in pathlib.Path("/proc").iterdir():
        if folder.name.isdigit() and (state := _state(int(folder.name))):
            parents.setdefault(int(state[1]), []).append((int(folder.name), state[19]))
    waiting = [pid]
    while waiting:
        for child in parents.get(waiting.pop(), []):
            with contextlib.suppress(OSError):
                found[child] = pathlib.Path(f"/proc/{child[0]}/cmdline").read_bytes()
                waiting.append(child[0])
    return found


def drivers(pid):
    """Process ids of the drivers of browsers that a process has started."""
    return sorted(child for (child, _), line in descendants(pid).items() if b"chromedriver" in line)


def gone(processes, seconds=120.0):
    """Whether these processes end within some seconds."""
    end = time.monotonic() + seconds
    while (left := [p for p in processes if _runs(*p)]) and time.monotonic() < end:
        time.sleep(0.1)
    return not left


def _runs(pid, started):
    state = _state(pid)
    return bool(state) and state[19] == started


def _state(pid):
    """Fields of /proc/PID/stat after the name; nothing for what has ended."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
    return [] if fields[0] in "ZX" else fields
