"""Made-up run folders for the tests of the report."""

from __future__ import annotations

import gzip
import json
import pathlib

import numpy as np

from evolving_rl_jax.config import default_config, to_json
from evolving_rl_jax.skills.bank import Bank, SkillRecord

# Everything that has ended a script element, a string or an attribute somewhere.
HOSTILE = (
    "<script>window.hacked=1</script></script><!--<img src=x onerror=window.hacked=2>"
    "{{ 7 * 7 }} \u2028\u2029 \"'`${window.hacked=3} \u00e9 \ud800"
)
SHARES = {"none": (0.2, 0.28), "own": (0.34, 0.72), "oracle": (0.7, 0.9), "misleading": (0.14, 0.2)}
TYPES = ("pick_and_place_simple", "pick_heat_then_place_in_recep")


def panel(name, temperature, late, *, games=60, hash_="abc", seed=0, conditions=tuple(SHARES)):
    """A panel file: `late` is 0 before and 1 after training."""
    rng = np.random.default_rng([seed, late])
    rows = []
    for split, offset in (("heldout_types", -0.05), ("valid_unseen", 0.0)):
        for i in range(games):
            outcomes = {
                c: {
                    "won": bool(rng.random() < SHARES[c][late] + offset),
                    "status": "ok",
                    "steps": 7,
                }
                for c in conditions
            }
            row = {"id": f"{split}-{i:03d}", "hash": f"{split}-{i}", "split": split}
            row |= {"type": TYPES[i % 2], "group": "maple", "conditions": outcomes}
            rows.append({**row, "retrieved": {"id": f"train-{i // 2}", "hash": f"t{i // 2}"}})
    return {
        "name": name,
        "iteration": 56 * late,
        "temperature": temperature,
        "seed": 1,
        "game_list_hash": hash_,
        "versions": {"jax": "0.10"},
        "games": rows,
        "summary": {},
    }


def _pieces(text):
    words = text.split(" ")
    return [words[0], *(" " + word for word in words[1:])]


def sequence(parts, seed=0, shared=0):
    """A training sequence out of (sampled, text) parts."""
    rng = np.random.default_rng(seed)
    pieces, mask = [], ""
    for sampled, text in parts:
        new = _pieces(text)
        pieces += new
        mask += "01"[sampled] * len(new)
    logprobs = np.round(-rng.exponential(0.7, mask.count("1")), 4).tolist()
    return {
        "turn": 0,
        "shared": shared,
        "pieces": pieces,
        "mask": mask,
        "logprobs": logprobs,
        "sampling_logprobs": [round(0.8 * x, 4) for x in logprobs],
    }


def episode(
    won, advantage, text="find mug at cedar mill", seen="You see a mug 1.", turns=6, seed=0
):
    """An episode record; the observation of its second turn is ``seen``."""
    actions = [
        "go to cabinet 2",
        "open cabinet 2",
        "take mug 1 from cabinet 2",
        "go to sinkbasin 1",
    ]
    actions += ["clean mug 1 with sinkbasin 1", "move mug 1 to countertop 1"]
    exchanges, parts = [], [(0, f"<task> {text}")]
    for i in range(turns):
        observation = seen if i == 1 else f"You arrive at cabinet {i}. The cabinet {i} is closed."
        output = f"mug> {actions[i % len(actions)]}"
        exchanges.append(
            {"observation": observation, "output": output, "action": output[5:], "valid": i != 2}
        )
        parts += [(0, f"<obs> {observation}\n<act>"), (1, output), (1, "<eos>")]
    return {
        "task": "cedar-mill/mug/" + text[:12],
        "type": TYPES[seed % 2],
        "text": text,
        "won": won,
        "status": "ok",
        "advantage": advantage,
        "turns": exchanges,
        "last_observation": "You win!" if won else "Nothing happens.",
        "sequences": [sequence(parts, seed)],
    }


def source(
    iteration,
    g,
    *,
    skills=4,
    tasks=4,
    seen="You see a mug 1.",
    text=None,
    win=0.5,
    turns=6,
    attempts=1,
):
    """A record of an episode file, with wins drawn at rate ``win``."""
    rng = np.random.default_rng([iteration, g])
    wins = rng.random((tasks, skills)) < win
    text = text or f"find {('mug', 'plate', 'apple')[g % 3]} at cedar mill and put it in countertop"
    records = []
    spread = wins - wins.mean(1, keepdims=True)
    for n in range(skills):
        name, rule = f"find mug {n}", f"the mug is in cabinet {n + 1}; {seen}"
        skill = {"raw": json.dumps({"name": name, "description": rule}), "name": name}
        skill |= {
            "description": rule,
            "valid": n != 3,
            "advantage": round(float(spread[:, n].sum()), 4),
        }
        skill |= {"reason": "" if n != 3 else "no JSON object", "reward": float(wins[:, n].mean())}
        raw = [(0, "<extract> failure <skill>"), (1, skill["raw"]), (1, "<eos>")]
        skill["sequences"] = [sequence(raw, n, shared=90)]
        skill["episodes"] = [
            {
                "k": k,
                "r": 0,
                **episode(
                    bool(wins[k, n]), float(spread[k, n]), f"task {k}: {text}", seen, turns, k
                ),
            }
            for k in range(tasks)
        ]
        records.append(skill)
    head = episode(bool(rng.random() < 0.3), None, text, seen, turns, g)
    several = {}
    if attempts > 1:
        others = [episode(i == 1, 0.5 - i, text, seen, 2 + i, g) for i in range(attempts - 1)]
        several = {"attempts": [*others, head], "best": attempts - 1}
    listed = [
        {"task": f"t{k}", "type": TYPES[k % 2], "text": f"task {k}: {text}"} for k in range(tasks)
    ]
    name = f"it{iteration:05d}-g{g:03d}"
    record = {
        "iteration": iteration,
        "id": name,
        "source": head,
        "tasks": listed,
        "skills": records,
    }
    return record | several


def write_json(folder, path, data):
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(json.dumps(data))


def write_episodes(folder, iteration, sources):
    (folder / "episodes").mkdir(exist_ok=True)
    path = folder / "episodes" / f"iteration_{iteration:05d}.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write("".join(json.dumps(s) + "\n" for s in sources))


def _metrics(iterations, seed, gain):
    rng = np.random.default_rng(seed)
    for i in range(iterations):
        grown = gain * i / iterations
        record = {"iteration": i, "rollout/win_rate": 0.3 + grown + 0.05 * rng.normal()}
        record |= {"rollout/source_success": 0.25 + grown / 4 + 0.05 * rng.normal()}
        record |= {f"rollout/figure_{j}": rng.normal() for j in range(10)}
        record |= {f"train/figure_{j}": rng.normal() + grown for j in range(20)}
        record |= {"train/kl": None if i == 7 else 0.01 * grown, "rate/episodes_per_s": 56.0}
        record |= {"time/environment": 0.4, "time/prefill": 0.6, "time/decode": 1.4}
        record |= {"time/train": 1.6, "time/other": 0.1, "time/total": 4.1}
        yield record


def make_bank(folder, iterations, hostile=""):
    """Two skills an iteration, one of them with a measured utility, and one refusal."""
    records = []
    for i in range(iterations):
        rules = [f"the mug is in cabinet {i}", hostile or "open it first"]
        for n in range(2):
            skill = {"name": f"find mug {i} {n}", "description": "where mugs are kept"}
            skill |= {
                "when_to_use": ["looking for a mug"],
                "workflow": [{"goal": "find", "action": "go"}],
            }
            skill |= {"decision_rules": rules, "error_handling": [], "extra": {}}
            measured = (
                {
                    "baseline_uses": 4,
                    "baseline_wins": 1.0,
                    "gained": max(i % 5 - 1, 0),
                    "lost": max(1 - i % 5, 0),
                }
                if n
                else {}
            )
            records.append(
                SkillRecord(f"it{i:05d}-g000-n{n}", i, "train-0", "t0", episode_id=f"it{i:05d}-g000",
                            policy_step=i, reward=0.5, skill=skill, uses=4, wins=float(i % 5), **measured)
            )  # fmt: skip
        records.append(
            SkillRecord(f"it{i:05d}-g000-n2", i, "train-0", "t0", reason="no JSON object")
        )
    Bank(folder / "skills" / "bank.jsonl").append(records)


def make_run(
    folder,
    iterations=56,
    *,
    arm="joint",
    seed=3,
    gain=0.4,
    sources=2,
    turns=6,
    logged=None,
    tasks=4,
) -> pathlib.Path:
    """A run folder with everything in it; the last logged iteration holds hostile text."""
    folder.mkdir(parents=True, exist_ok=True)
    config = default_config()
    config.seed, config.algorithm.arm = seed, arm
    (folder / "config.json").write_text(to_json(config))
    lines = [json.dumps(record) + "\n" for record in _metrics(iterations, seed, gain)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    for temperature in (1.0, 0.3):
        for late, name in enumerate(("warmstart", "final")):
            result = panel(name, temperature, late, seed=seed)
            write_json(folder, f"eval/{name}-t{temperature:g}.json", result)
    middle = {**panel("panel", 1.0, 1, games=10, seed=seed), "iteration": iterations // 2}
    write_json(folder, "eval/iteration_00028-t1.json", middle)
    for i in logged or range(iterations):
        win = 0.3 + gain * i / iterations
        write_episodes(
            folder, i, [source(i, g, win=win, turns=turns, tasks=tasks) for g in range(sources)]
        )
    last = source(iterations - 1, 0, seen=HOSTILE, win=0.5, text="find hostile text " + HOSTILE)
    write_episodes(folder, iterations - 1, [last, source(iterations - 1, 1, win=0.9, attempts=3)])
    make_bank(folder, min(iterations, 40), HOSTILE)
    return folder
