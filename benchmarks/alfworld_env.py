"""ALFWorld engines side by side: steps and resets a second, against the published AsyncBatchEnv.

Command:   python benchmarks/alfworld_env.py [--workers=2] [--receptacles=15,38] [--games=4]
Hardware:  CPU; about three minutes on two cores, most of them in the published package
Prints:    a table for each size of room, then everything as one line of JSON

Both sides play the same games with random admissible actions, in the same number of worker
processes.  The published side is textworld's AsyncBatchEnv over ALFWorld's own wrapper, one episode
in each worker, which is all that it can play at a time.  Ours is ``EnvPool``, the way training uses
it: many episodes of each game in the air.  ``pool`` rates are wall time and include sending
everything between processes; the caller that chooses actions competes for the same cores.  ``core``
rates are one engine in one process, a second of its CPU time, on both sides.

* first: games never seen by the process are loaded and played by 8 episodes, one training group.
* next: 40 more episodes of each of the same games, with actions not played before.
* load: resets to a game that is not in memory.
* reset: resets to a game that is.

``--memory=300`` measures something else: resident megabytes of one process while it plays so many games
of the smallest of the sizes, 16 episodes each.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import pathlib
import random
import resource
import tempfile
import time
from collections.abc import Callable, Sequence

from evolving_rl_jax import envs, types
from evolving_rl_jax.envs.alfworld.households import scenes as scene_layouts
from evolving_rl_jax.envs.alfworld.households.problem import Room, Thing, engine_logic, problem
from evolving_rl_jax.envs.pool.pool import EnvPool

EPISODE_STEPS = 50
FIRST, NEXT = 8, 40  # episodes of each game
KINDS = ("Mug", "Apple", "Plate", "Egg", "Potato", "Cup", "Tomato", "Knife", "Spoon", "Bowl")


def write_games(folder: pathlib.Path, num_receptacles: int, num: int) -> list[types.Task]:
    """Games in the kitchen of nearly that size, with as many objects as receptacles."""
    rooms = [scene_layouts.load_scene(n).room for n in scene_layouts.scene_numbers("kitchen")]
    room = min(rooms, key=lambda room: abs(len(room.places) - num_receptacles))
    domain, grammar = engine_logic()
    grammar = grammar.replace("UNKNOWN GOAL", "heat a mug and put it on the countertop")
    tasks = []
    for seed in range(num):
        text = _problem(room, random.Random(seed))
        path = folder / f"{num_receptacles}-{seed}"
        path.mkdir()
        data = {"pddl_domain": domain, "grammar": grammar, "pddl_problem": text, "solvable": True}
        (path / "game.tw-pddl").write_text(json.dumps(data))
        name = str(path)
        tasks.append(types.Task(name, "alfworld", "bench", "", "", name, content_hash=name))
    return tasks


def _problem(room: Room, rng: random.Random) -> str:
    things = []
    for i in range(len(room.places)):
        kind = KINDS[i % len(KINDS)]
        things.append(Thing(kind, i // len(KINDS) + 1, rng.choice(room.holding(kind))))
    goal = {"task_type": "pick_heat_then_place_in_recep", "kind": "Mug", "target": "CounterTop"}
    return problem(room, things, **goal)


def play_alone(env: envs.Environment, tasks: Sequence[types.Task], repeats: int, seed: int) -> int:
    """Plays episodes one after the other; returns the number of steps."""
    rng, steps = random.Random(seed), 0
    for task in [task for task in tasks for _ in range(repeats)]:
        actions = env.reset(task).actions
        for _ in range(EPISODE_STEPS):
            result = env.step(rng.choice(actions))
            actions, steps = result.actions, steps + 1
            if result.done:
                break
    return steps


def play_pool(pool: EnvPool, tasks: Sequence[types.Task], repeats: int, seed: int) -> int:
    """The same through worker processes, all episodes in the air at once."""
    rng, left, steps = random.Random(seed), {}, 0
    for episode, task in enumerate(task for task in tasks for _ in range(repeats)):
        pool.reset(episode, task)
        left[episode] = EPISODE_STEPS
    while left:
        for episode, answer in pool.poll(None):
            if answer.status != types.OK:
                raise RuntimeError(answer.text)
            steps += left[episode] < EPISODE_STEPS
            if left[episode] == 0 or getattr(answer, "done", False):
                del left[episode]
                pool.close(episode)
                continue
            left[episode] -= 1
            pool.step(episode, rng.choice(answer.actions))
    return steps


def rate(work: Callable[[], int], clock: Callable[[], float] = time.perf_counter) -> float:
    """What ``work`` counted, a second."""
    start = clock()
    done = work()
    return done / (clock() - start)


def stock_env() -> object:
    """One environment of the published package, as its own loader wraps it."""
    import textworld
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
    from textworld.envs.pddl.pddl import PddlEnv
    from textworld.envs.wrappers import Filter

    infos = textworld.EnvInfos(admissible_commands=True, won=True)
    return Filter(AlfredDemangler(PddlEnv(infos), shuffle=False))


def measure_stock(tasks: Sequence[types.Task], workers: int, num_steps: int) -> dict[str, float]:
    """The published AsyncBatchEnv: loads with reset, resets, and steps, of ``workers`` episodes."""
    from textworld.envs.batch import AsyncBatchEnv

    batch = AsyncBatchEnv([stock_env] * workers)
    files = [str(pathlib.Path(tasks[i % len(tasks)].path) / "game.tw-pddl") for i in range(workers)]

    def reset(load: bool) -> int:
        if load:
            batch.load(files)
        states.append(batch.reset())
        return workers

    def step() -> int:
        infos = states[-1][1]
        for _ in range(num_steps):
            choices = infos["admissible_commands"]
            infos = batch.step([rng.choice(actions) for actions in choices])[3]
        return num_steps * workers

    states, rng = [], random.Random(0)
    result = {"load": rate(functools.partial(reset, True))}
    result["reset"] = rate(functools.partial(reset, False))
    result["next"] = result["first"] = rate(step)
    return result | _stock_core(tasks[0], num_steps)


def _stock_core(task: types.Task, num_steps: int) -> dict[str, float]:
    env, cpu, rng = envs.make("alfworld", engine="stock"), time.process_time, random.Random(0)

    def reset() -> int:
        seen.append(env.reset(task).actions)
        return 1

    def step() -> int:
        for _ in range(num_steps):
            seen.append(env.step(rng.choice(seen[-1])).actions)
        return num_steps

    seen: list[tuple[str, ...]] = []
    result = {"core load": rate(reset, cpu), "core reset": rate(reset, cpu)}
    result["core next"] = result["core first"] = rate(step, cpu)
    return result


def measure_native(tasks: Sequence[types.Task], workers: int) -> dict[str, float]:
    """Our engine in this process (CPU time) and through a pool (wall time)."""
    gc.freeze()  # as worker processes do
    gc.set_threshold(100_000, 20, 20)
    # One game a worker first: it pays for imports, and for what all games share.
    warm, new, cpu = tasks[:workers], tasks[workers:], time.process_time
    fresh = envs.make("alfworld", memory_mb=1e4 + 1)
    play_alone(fresh, warm, 1, 0)
    result = {}
    result["core first"] = rate(lambda: play_alone(fresh, new, FIRST, 1), cpu)
    result["core next"] = rate(lambda: play_alone(fresh, new, NEXT, 2), cpu)
    again = envs.make("alfworld", memory_mb=1e4 + 2)
    again.reset(warm[0])
    result["core load"] = rate(lambda: len([again.reset(task) for task in new]), cpu)
    result["core reset"] = rate(lambda: len([again.reset(t) for t in new * 2000]), cpu)
    with EnvPool("alfworld", num_workers=workers) as pool:
        play_pool(pool, warm, 1, 0)
        result["load"] = rate(lambda: _resets(pool, new))
    with EnvPool("alfworld", num_workers=workers) as pool:
        play_pool(pool, warm, 1, 0)
        result["first"] = rate(lambda: play_pool(pool, new, FIRST, 1))
        result["next"] = rate(lambda: play_pool(pool, new, NEXT, 2))
        result["reset"] = rate(lambda: _resets(pool, new * 200))
    return result


def _resets(pool: EnvPool, tasks: Sequence[types.Task]) -> int:
    for episode, task in enumerate(tasks):
        pool.reset(episode, task)
    done = 0
    while done < len(tasks):
        done += len(pool.poll(None))
    for episode in range(len(tasks)):
        pool.close(episode)
    return done


def measure_memory(tasks: Sequence[types.Task], every: int) -> None:
    """Prints the resident megabytes of this process after each ``every`` games."""
    env = envs.make("alfworld")
    for done, task in enumerate(tasks, start=1):
        play_alone(env, [task], 16, done)
        env.close()
        if done % every == 0:
            pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
            print(f"{done:5d} games {pages * resource.getpagesize() / 1e6:6.0f} MB", flush=True)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--receptacles", default="15,38")
    parser.add_argument(
        "--games", type=int, default=4, help="beside one for each worker to warm up"
    )
    parser.add_argument("--stock-steps", type=int, default=40)
    parser.add_argument("--memory", type=int, default=0, help="games; measures memory alone")
    arguments = parser.parse_args()
    if arguments.memory:
        with tempfile.TemporaryDirectory() as folder:
            size = min(map(int, arguments.receptacles.split(",")))
            tasks = write_games(pathlib.Path(folder), size, arguments.memory)
            measure_memory(tasks, max(1, arguments.memory // 10))
        return
    report = {}
    for size in map(int, arguments.receptacles.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            tasks = write_games(pathlib.Path(folder), size, arguments.games + arguments.workers)
            results = {"stock": measure_stock(tasks, arguments.workers, arguments.stock_steps)}
            results["native"] = measure_native(tasks, arguments.workers)
        report[size] = results
        _print(size, arguments.workers, results)
    print(json.dumps(report))


def _print(size: int, workers: int, results: dict[str, dict[str, float]]) -> None:
    stock, native = results["stock"], results["native"]
    print(f"\n{size} receptacles, {workers} workers; a second, and as a multiple of stock")
    units = {"first": "steps", "next": "steps", "load": "resets", "reset": "resets"}
    for what, unit in units.items():
        for how in (what, f"core {what}"):
            name = f"{how if how != what else 'pool ' + what} {unit}"
            mine = native[how]
            print(
                f"{name:18s} stock {stock[how]:7.2f}   native {mine:8.0f} ({mine / stock[how]:8.0f} x)",
                flush=True,
            )


if __name__ == "__main__":
    main()
