"""Sources played several times by a policy of fixed words, for the tests of it."""

import numpy as np
from doubles import FakeEngine, FakePool, compact_prompts, make_task, skill_text
from ml_collections import ConfigDict

from evolving_rl_jax.rollout.episode import Driver, PlaySettings
from evolving_rl_jax.rollout.evolve import Evolver

PROMPTS = compact_prompts()
G, K, N, R, E = 2, 2, 3, 1, 3
SKILL_KEYS, EPISODE_KEYS = 1_000_000, 2_000_000
SETTINGS = PlaySettings(
    max_turn_tokens=20, max_skill_tokens=99, max_steps=3, temperature=1.0, top_p=1.0, top_k=0
)
# What attempt s at source g does: looks so often, then wins or loses.
PLANS = {
    (0, 0): (0, "lose"), (0, 1): (1, "win"), (0, 2): (2, "lose"),
    (1, 0): (0, "win"), (1, 1): (0, "lose"), (1, 2): (1, "win"),
}  # fmt: skip
# From the one that failed first to the furthest; of equals the first is the furthest.
ORDER = {0: (0, 2, 1), 1: (1, 2, 0)}


def source_of(key):
    """(g, s) of a sampling key below those of skills."""
    return key % 50_000, key // 50_000


def speak(key, turn):
    if key < SKILL_KEYS:
        looks, last = PLANS[source_of(key)]
        return f"mug> {'look' if turn < looks else last}"
    if key < EPISODE_KEYS:
        return skill_text(f"skill {key}")
    return "mug> win" if key % 2 else "mug> lose"


def collect(
    attempts=E, *, fail=None, prompts=PROMPTS, settings=SETTINGS, max_length=10_000, stop=None,
    method="collect", **options,
):  # fmt: skip
    changes = {"train_sources": options.pop("train_sources", False)}
    rollout = ConfigDict(
        {
            "num_retrieved": K,
            "num_skills": N,
            "num_repeats": R,
            "evaluate_invalid_skills": False,
            "max_skill_chars": 500,
            "num_source_episodes": attempts,
            **changes,
        }
    )
    tasks = [make_task(f"t{i}") for i in range(G + K)]
    engine, pool = FakeEngine(prompts.tokenizer, speak, max_length=max_length), FakePool(fail)
    driver = Driver(engine, pool, prompts, settings, iteration=3)
    evolver = Evolver(driver, None, prompts, rollout, stop, **options)
    experience = evolver.collect(tasks[:G], None, [tasks[G:]] * G)
    assert not engine.open_now and not pool.running
    return experience, engine, driver


def prompt_of(engine, key):
    """The ids before what was sampled for a skill."""
    session = engine.sessions[key]
    return session.tokens[: int(np.flatnonzero(session.mask)[0])].tolist()
