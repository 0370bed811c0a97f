"""Tokens of an episode in every form of prompt, of the same scripted episodes.

Command:   python benchmarks/prompt_tokens.py --tokenizer=HF_DIR [--games=DIR] [--split=train] [--num=60]
Hardware:  CPU; seconds
Prints:    a table, then everything as one line of JSON

Without ``--games`` households are generated, once in the compact room and once in the package's scenes.
Who plays is the teacher of the warm start where tasks state their facts, without errors and without a
skill in its prompt; elsewhere the walkthrough.  An episode is counted up to the last action's answer; the
extraction after it is counted apart, request and the teacher's skill together.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import tempfile
from types import SimpleNamespace

import numpy as np

from evolving_rl_jax import envs, models
from evolving_rl_jax.data.tasks import load_tasks, select
from evolving_rl_jax.envs.alfworld.experts import Walkthrough
from evolving_rl_jax.envs.alfworld.households.plan import GamesSpec
from evolving_rl_jax.envs.alfworld.households.write import generate_games
from evolving_rl_jax.models.markers import with_markers
from evolving_rl_jax.rollout.contexts import FullContext
from evolving_rl_jax.rollout.prompts import COMPACT_MARKERS, make_prompts

FORMS = [("chat", kind) for kind in ("all", "changed", "first", "none")]
FORMS += [("chat_short", kind) for kind in ("all", "changed", "first", "none")]
FORMS += [("compact", "none")]
PERFECT = SimpleNamespace(follow_skill=1.0, action_noise=0.0, good_extraction=1.0)
_DRAWS = 100


def play(benchmark, environment, task, seed):
    """(observations with their actions, (target, action) of each turn, skill, won) of an episode."""
    player = _player(benchmark, task, seed)
    seen = environment.reset(task)
    read, said, won = [(seen.text, seen.actions)], [], False
    for _ in range(task.step_limit):
        action = player.act(seen.text, seen.actions)
        said.append((player.target, action))
        seen = environment.step(action)
        read.append((seen.text, seen.actions))
        won = seen.won
        if seen.done:
            break
    skill = getattr(player, "skill", lambda *_: "")([text for text, _ in read], won)
    return read, said, skill, won


def _player(benchmark, task, seed):
    if not benchmark.states_facts(task):
        return Walkthrough(task)
    draws = (
        benchmark.teacher(task, np.random.default_rng([seed, i]), PERFECT) for i in range(_DRAWS)
    )
    return next(teacher for teacher in draws if not teacher.given)


def count(prompts, task, episode) -> dict[str, float]:
    """Tokens of an episode: all, those that the policy writes, the opening, a later turn, an extraction."""
    read, said, skill, won = episode
    context, forced = FullContext(prompts, task, ""), []
    for (text, actions), (target, action) in zip(read[:-1], said, strict=True):
        forced.append(len(context.observe(text, actions)[0]))
        ids = prompts.action_ids(target, action)
        context.act(ids, np.zeros(len(ids)), np.zeros(len(ids)))
    (sample,) = context.samples()
    found = {
        "episode": len(sample.tokens),
        "written": int(sample.loss_mask.sum()),
        "opening": forced[0],
        "turns": len(said),
    }
    found |= {"turn": float(np.mean(forced[1:]))} if len(forced) > 1 else {}
    if skill:
        _, request = context.extraction(won, read[-1][0], 1 << 30)
        found["extraction"] = len(request) + len(prompts.skill_ids(skill))
    return found


def measure(tasks, chat, compact) -> dict[str, dict[str, float]]:
    """Form -> mean tokens over the episodes of ``tasks``."""
    benchmark = envs.benchmark("alfworld")
    environment = envs.make("alfworld")
    episodes = [play(benchmark, environment, task, i) for i, task in enumerate(tasks)]
    environment.close()
    print(f"  {len(tasks)} episodes, {np.mean([e[3] for e in episodes]):.0%} won")
    rows = {}
    for style, shown in FORMS:
        tokenizer = compact if style == "compact" else chat
        prompts = make_prompts(style, tokenizer, benchmark.texts, shown)
        counts = [count(prompts, t, e) for t, e in zip(tasks, episodes, strict=True)]
        names = dict.fromkeys(name for c in counts for name in c)
        rows[f"{style}, {shown}"] = {
            name: float(np.mean([c[name] for c in counts if name in c])) for name in names
        }
        rows[f"{style}, {shown}"]["longest"] = max(c["episode"] for c in counts)
    return rows


def show(rows) -> None:
    """The table."""
    names = ["episode", "longest", "written", "opening", "turn", "extraction", "turns"]
    print("  form, show_actions    " + "".join(f"{n:>11}" for n in names))
    for form, row in rows.items():
        values = "".join(f"{row[n]:11.1f}" if n in row else f"{'-':>11}" for n in names)
        print(f"  {form:22}{values}")


def main() -> None:
    """Measures and prints."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument(
        "--tokenizer", required=True, help="model folder, hub id or GGUF file of a chat model"
    )
    p.add_argument("--games", default="", help="folder of games; empty = generated households")
    p.add_argument("--split", default="train")
    p.add_argument("--num", type=int, default=60, help="games, at equal distances")
    args = p.parse_args()
    chat, cfg = models.load_tokenizer(args.tokenizer), models.config_from_hf(args.tokenizer)
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        compact = with_markers(args.tokenizer, COMPACT_MARKERS, cfg.vocab_size, scratch / "compact")
        folders = {args.games: pathlib.Path(args.games)} if args.games else _generated(scratch)
        for name, folder in folders.items():
            tasks = select(load_tasks(folder), split=args.split)
            tasks = tasks[:: max(1, len(tasks) // args.num)][: args.num]
            print(name)
            found[name] = measure(tasks, chat, compact)
            show(found[name])
    print(json.dumps(found))


def _generated(scratch: pathlib.Path) -> dict[str, pathlib.Path]:
    folders = {}
    for rooms in ("compact", "scenes"):
        folders[f"households, {rooms}"] = folder = scratch / rooms
        spec = GamesSpec(
            num_train_households=4, num_unseen_households=1, games_per_object=4, num_heldout=6,
            num_warmstart=6, rooms=rooms,
        )  # fmt: skip
        generate_games(folder, seed=0, spec=spec)
    return folders


if __name__ == "__main__":
    main()
