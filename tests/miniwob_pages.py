"""MiniWoB++ in tests: whether it can be played here, tasks, scripted episodes, what runs of Chromium."""

import contextlib
import os
import pathlib
import re
import time

import pytest

from evolving_rl_jax.envs.miniwob import chromium
from evolving_rl_jax.envs.miniwob.families import steps
from evolving_rl_jax.envs.miniwob.solvers import SCRIPTS, Lost, View
from evolving_rl_jax.types import Task

LACK = chromium.missing()
_PROFILE = re.compile(rb"(?<![^=\0])/[^=\0]*/miniwob-\w+")
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
    """Processes that a process has started, and theirs: {(pid, time of start): command line}.

    Chromium's crash handlers belong to nobody: they are found by the folder that they write to.
    """
    lines, parents = {}, {}
    for folder in pathlib.Path("/proc").iterdir():
        if folder.name.isdigit() and (state := _state(int(folder.name))):
            process = int(folder.name), state[19]
            with contextlib.suppress(OSError):
                lines[process] = (folder / "cmdline").read_bytes()
                parents.setdefault(int(state[1]), []).append(process)
    found, waiting = {}, [pid]
    while waiting:
        for child in parents.get(waiting.pop(), []):
            found[child] = lines[child]
            waiting.append(child[0])
    folders = _folders(found)
    handlers = {p: line for p, line in lines.items() if folders & _folders({p: line})}
    return handlers | found


def drivers(pid):
    """Process ids of the drivers of browsers that a process has started."""
    return sorted(child for (child, _), line in descendants(pid).items() if b"chromedriver" in line)


def gone(processes, seconds=120.0):
    """Whether these processes end within some seconds, and with them the folders that they wrote to."""
    end = time.monotonic() + seconds

    def left():
        return [p for p in processes if _runs(*p)] + [f for f in _folders(processes) if f.exists()]

    while left() and time.monotonic() < end:
        time.sleep(0.1)
    return not left()


def _folders(processes):
    """The profiles that command lines name."""
    found = _PROFILE.findall(b"\0".join(processes.values()))
    return {pathlib.Path(os.fsdecode(name)) for name in found}


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
