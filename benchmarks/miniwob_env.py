"""MiniWoB++: ours against the package as it is, in one run: steps a second of all its processes' time on a core
(which other work beside it does not change) and of the clock; memory over many episodes.

Command:   python benchmarks/miniwob_env.py [--episodes=40] [--memory=2000]
Hardware:  CPU with Chromium and its driver; minutes
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterator

from evolving_rl_jax.envs.miniwob import chromium
from evolving_rl_jax.envs.miniwob.env import MiniWob, Options, make
from evolving_rl_jax.envs.web.actions import WebAction
from evolving_rl_jax.types import Task

FAMILIES = ("click-checkboxes", "click-tab-2", "email-inbox", "login-user")
STEPS = 4  # clicks of an episode, on texts and fields, which end none
PATIENT = Options(answer_s=300.0)  # other work beside it makes nothing fail
_QUIET = re.compile(r"^(?:text|heading|textbox) .*\[ref=e(\d+)\]", re.M)
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def task(family: str, seed: int) -> Task:
    """A task without a folder."""
    meta = {"family": family, "seed": seed}
    return Task(f"{family}/{seed}", "miniwob", "", family, "", family, "", meta=meta)


def play(env: MiniWob, family: str, seed: int) -> int:
    """Plays some clicks; how many steps there were, the reset among them."""
    text = env.reset(task(family, seed)).text
    for i in range(STEPS):
        refs = _QUIET.findall(text) or ["1"]
        reply = env.step(WebAction("CLICK", int(refs[i % len(refs)])).to_json())
        text = reply.text
        if reply.done:
            return i + 2
    return STEPS + 1


def play_packaged(env, seed: int) -> int:
    """The same of the package, through gymnasium."""
    from miniwob.action import ActionTypes

    seen, _ = env.reset(seed=seed)
    for i in range(STEPS):
        refs = [e["ref"] for e in seen["dom_elements"] if e["tag"] in ("span", "h2", "p")]
        refs = refs or [e["ref"] for e in seen["dom_elements"] if e["tag"] == "div"]
        action = env.unwrapped.create_action(ActionTypes.CLICK_ELEMENT, ref=refs[i % len(refs)])
        seen, _, done, _, _ = env.step(action)
        if done:
            return i + 2
    return STEPS + 1


@contextlib.contextmanager
def packaged(family: str) -> Iterator:
    """The package's environment of a family, without pictures of the page."""
    import gymnasium
    import miniwob

    os.environ["MINIWOB_CHROME_BINARY"] = chromium.executable()
    os.environ["MINIWOB_CHROMEDRIVER"] = chromium.driver()
    gymnasium.register_envs(miniwob)
    env = gymnasium.make(f"miniwob/{family}-v1")
    env.reset(seed=0)
    env.unwrapped.instance.record_screenshots = False
    yield env
    env.close()


def busy_s(driver: int) -> float:
    """Seconds that this process, a driver and all that it started have computed, reaped ones too."""
    started: dict[int, list[int]] = {}
    spent = {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid, fields = int(stat.parent.name), stat.read_text().rpartition(")")[2].split()
            started.setdefault(int(fields[1]), []).append(pid)
            spent[pid] = sum(map(int, fields[11:15])) * _TICK_S
    total, waiting = time.process_time(), [driver]
    while waiting:
        pid = waiting.pop()
        total += spent.get(pid, 0.0)
        waiting += started.get(pid, [])
    return total


def rates(play_one: Callable[[int], int], driver: int, episodes: int) -> tuple[float, float]:
    """Steps a second on one core, and of the clock."""
    play_one(0)
    busy, start = busy_s(driver), time.perf_counter()
    steps = sum(play_one(seed) for seed in range(1, episodes + 1))
    return steps / (busy_s(driver) - busy), steps / (time.perf_counter() - start)


def compare(family: str, env: MiniWob, episodes: int) -> str:
    """Both, one after the other."""
    play(env, family, 0)
    own = rates(lambda seed: play(env, family, seed), env.browser.pids()[0], episodes)
    with packaged(family) as raw_env:
        driver = raw_env.unwrapped.instance.driver.service.process.pid
        raw = rates(lambda seed: play_packaged(raw_env, seed), driver, episodes)
    return (
        f"{family}: {own[0]:.1f} steps a second on one core, the package {raw[0]:.1f} "
        f"({own[0] / raw[0]:.1f} x); of the clock {own[1]:.1f} and {raw[1]:.1f} "
        f"({own[1] / raw[1]:.1f} x)"
    )


def memory(episodes: int) -> list[float]:
    """Megabytes of the browser after each fifth of some episodes of all families."""
    env, held = make(Options(browser_mb=1e6, answer_s=300.0)), []
    for i in range(episodes):
        play(env, FAMILIES[i % len(FAMILIES)], i)
        if (i + 1) % max(1, episodes // 5) == 0:
            held.append(env.browser.memory_mb())
    env.browser.close()
    return held


def main() -> None:
    """Prints all figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--memory", type=int, default=2000)
    args = parser.parse_args()
    env = make(PATIENT)
    for family in FAMILIES:
        print(compare(family, env, args.episodes), flush=True)
    env.browser.close()
    shown = ", ".join(f"{m:.0f}" for m in memory(args.memory))
    print(f"the browser holds after each fifth of {args.memory} episodes: {shown} MB")


if __name__ == "__main__":
    main()
