"""MiniWoB++: ours against the package as it is, steps a second in one run; memory over many episodes.

Command:   python benchmarks/miniwob_env.py [--episodes=40] [--memory=2000]
Hardware:  CPU with Chromium and its driver; minutes
"""

from __future__ import annotations

import argparse
import os
import re
import time

from evolving_rl_jax.envs.miniwob import chromium
from evolving_rl_jax.envs.miniwob.env import MiniWob, Options, make
from evolving_rl_jax.envs.web.actions import WebAction
from evolving_rl_jax.types import Task

FAMILIES = ("click-checkboxes", "click-tab-2", "email-inbox", "login-user")
STEPS = 4  # clicks of an episode, on texts and fields, which end none
_QUIET = re.compile(r"^(?:text|heading|textbox) .*\[ref=e(\d+)\]", re.M)


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


def ours(episodes: int) -> dict[str, float]:
    """Family -> steps a second."""
    env, rates = make(Options()), {}
    for family in FAMILIES:
        play(env, family, 0)
        start = time.perf_counter()
        steps = sum(play(env, family, seed) for seed in range(episodes))
        rates[family] = steps / (time.perf_counter() - start)
    env.browser.close()
    return rates


def packaged(episodes: int) -> dict[str, float]:
    """The same of the package, through gymnasium, without pictures of the page."""
    import gymnasium
    import miniwob
    from miniwob.action import ActionTypes

    os.environ["MINIWOB_CHROME_BINARY"] = chromium.executable()
    os.environ["MINIWOB_CHROMEDRIVER"] = chromium.driver()
    gymnasium.register_envs(miniwob)
    rates = {}
    for family in FAMILIES:
        env = gymnasium.make(f"miniwob/{family}-v1")
        seen, _ = env.reset(seed=0)
        env.unwrapped.instance.record_screenshots = False
        start, steps = time.perf_counter(), 0
        for seed in range(episodes):
            seen, _ = env.reset(seed=seed)
            steps += 1
            for i in range(STEPS):
                refs = [e["ref"] for e in seen["dom_elements"] if e["tag"] in ("span", "h2", "p")]
                refs = refs or [e["ref"] for e in seen["dom_elements"] if e["tag"] == "div"]
                action = env.unwrapped.create_action(
                    ActionTypes.CLICK_ELEMENT, ref=refs[i % len(refs)]
                )
                seen, _, done, _, _ = env.step(action)
                steps += 1
                if done:
                    break
        rates[family] = steps / (time.perf_counter() - start)
        env.close()
    return rates


def memory(episodes: int) -> list[float]:
    """Megabytes of the browser after each fifth of some episodes of all families."""
    env, held = make(Options(browser_mb=1e6)), []
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
    raw, own = packaged(args.episodes), ours(args.episodes)
    for family in FAMILIES:
        print(
            f"{family}: {own[family]:.1f} steps a second, the package {raw[family]:.1f} "
            f"({own[family] / raw[family]:.1f} x)"
        )
    shown = ", ".join(f"{m:.0f}" for m in memory(args.memory))
    print(f"the browser holds after each fifth of {args.memory} episodes: {shown} MB")


if __name__ == "__main__":
    main()
