"""Our engine against the published one in rooms of all kinds, on other domains, and its memory."""

import contextlib
import gc
import json
import pathlib
import random
import tracemalloc
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("alfworld")

import scene_games

from evolving_rl_jax import envs, types
from evolving_rl_jax.envs.alfworld.engine.game import open_game
from evolving_rl_jax.envs.alfworld.env import NativeAlfworld
from evolving_rl_jax.envs.alfworld.games import GameStore
from evolving_rl_jax.envs.alfworld.households import write as households
from evolving_rl_jax.envs.alfworld.names import TASK_TYPES

ODD_ACTIONS = ("", "  look  ", "help ", "Look", "go to nowhere 9", "take mug 1", "drop {r}")
CHANGING = ("take", "move", "open", "use", "heat", "cool", "clean", "slice", "close")
SMALL_KINDS = ("Mug", "Apple", "Knife")
SCENE_KINDS = ("Mug", "Apple", "Knife", "Plate", "Egg", "Book", "Potato", "Cup")


def task_of(folder, task_type: str = "") -> types.Task:
    folder = str(folder)
    return types.Task(folder, "alfworld", "test", task_type, "", folder, content_hash=folder)


def native(**options) -> envs.Environment:
    return envs.make("alfworld", engine="native", **options)


def pick(rng: random.Random, actions) -> str:
    """An odd action now and then, else often one that changes something."""
    if rng.random() < 0.1:
        return rng.choice(ODD_ACTIONS)
    changing = [a for a in actions if a.startswith(CHANGING)]
    return rng.choice(changing if changing and rng.random() < 0.6 else actions or ODD_ACTIONS)


def lock_step(reference, own, task, num_steps: int, seed: int, expert=()) -> int:
    """Plays ``expert``, then at random; the engine must answer as the reference does."""
    rng, plan = random.Random(seed), list(expert)
    expected = reference.reset(task)
    assert own.reset(task) == expected
    for step in range(num_steps):
        action = plan[step] if step < len(plan) else pick(rng, expected.actions)
        expected = reference.step(action)
        assert own.step(action) == expected, (step, action)
    return num_steps


@pytest.fixture(scope="module")
def stock():
    return envs.make("alfworld", engine="stock")


@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_native_equals_stock(task_type, stock, tmp_path):
    """In the room in which the published engine is fastest, with a memory that is always full."""
    folder = tmp_path / "game"
    scene_games.write_game(folder, scene_games.small_room(), task_type, SMALL_KINDS, 0)
    lock_step(stock, native(memory_mb=1.0), task_of(folder), 30, 0)


def test_native_equals_stock_in_a_scene(stock, tmp_path):
    room = scene_games.scene_room(15)
    assert abs(len(room.places) - 15) <= 1
    folder = scene_games.write_game(tmp_path / "game", room, TASK_TYPES[2], SCENE_KINDS, 0)
    lock_step(stock, native(memory_mb=1.0), task_of(folder), 25, 0)


@pytest.fixture(scope="module")
def homes(tmp_path_factory) -> list[types.Task]:
    """Generated games with walkthroughs, one of each task type."""
    out = tmp_path_factory.mktemp("homes")
    index = households.generate_even(out, num=6, seed=7)
    kinds = [entry["path"].rsplit("/", 1)[-1].rsplit("-", 1)[0] for entry in index["games"]]
    pairs = zip(index["games"], kinds, strict=True)
    return [task_of(out / entry["path"], kind) for entry, kind in pairs]


def read(task) -> dict:
    return json.loads((pathlib.Path(task.path) / "game.tw-pddl").read_text())


@pytest.mark.slow
def test_native_equals_stock_for_long(stock, tmp_path):
    """20,000 steps of the published engine: all task types, three sizes of rooms."""
    own, steps = native(memory_mb=1.0), 0
    sizes = [(scene_games.small_room(), SMALL_KINDS, 2500), (scene_games.scene_room(15), None, 800)]
    sizes.append((scene_games.scene_room(38), None, 50))
    for number, task_type in enumerate(TASK_TYPES):
        for room, kinds, num_steps in sizes:
            folder = tmp_path / f"game{number}-{len(room.places)}"
            kinds = kinds or SCENE_KINDS * (len(room.places) // 8)
            scene_games.write_game(folder, room, task_type, kinds, 100 + number)
            steps += lock_step(stock, own, task_of(folder), num_steps, number)
    print(f"{steps:,} steps of stock and native, 0 differences")
    assert steps >= 20_000


@pytest.mark.slow
@pytest.mark.parametrize("rooms", ["compact", "scenes"])
def test_native_equals_stock_in_generated_households(rooms, stock, tmp_path):
    """Two games of each task type: the walkthrough, which wins, then at random."""
    index = households.generate_even(tmp_path, num=12, seed=31, rooms=rooms)
    own = native()
    for seed, entry in enumerate(index["games"]):
        task = task_of(tmp_path / entry["path"])
        walkthrough = read(task)["walkthrough"]
        lock_step(stock, own, task, len(walkthrough), seed, walkthrough)
        assert own.step("look").won
        lock_step(stock, own, task, 60, seed)


# A domain with other objects, verbs and constructs than ALFWorld's: subtypes, constants, negative
# and disjunctive conditions, conditional effects, deletions of what may not hold, effects that
# change nothing, and texts about what is no longer so.
DOMAIN = """
(define (domain harbour)
 (:requirements :adl :typing)
 (:types person pier vehicle - object boat raft - vehicle)
 (:constants home_bar_1 - pier)
 (:predicates (at ?p - person ?q - pier) (moored ?v - vehicle ?q - pier) (joined ?a ?b - pier)
   (afloat ?v - vehicle) (painted ?v - vehicle) (lit ?q - pier) (rusty ?v - vehicle)
   (aboard ?p - person ?v - vehicle) (bell) (counted ?v - vehicle) (dry ?v - vehicle))
 (:action walk :parameters (?p - person ?a - pier ?b - pier)
   :precondition (and (at ?p ?a) (or (joined ?a ?b) (joined ?b ?a)) (not (lit ?b)))
   :effect (and (not (at ?p ?a)) (at ?p ?b)))
 (:action board :parameters (?p - person ?v - vehicle ?q - pier)
   :precondition (and (at ?p ?q) (moored ?v ?q) (not (aboard ?p ?v)))
   :effect (and (aboard ?p ?v) (not (dry ?v))))
 (:action leave :parameters (?p - person ?v - vehicle)
   :precondition (aboard ?p ?v) :effect (not (aboard ?p ?v)))
 (:action row :parameters (?p - person ?v - raft ?a - pier ?b - pier)
   :precondition (and (aboard ?p ?v) (moored ?v ?a) (at ?p ?a) (not (= ?a ?b)))
   :effect (and (not (moored ?v ?a)) (moored ?v ?b) (not (at ?p ?a)) (at ?p ?b)))
 (:action paint :parameters (?p - person ?v - vehicle)
   :precondition (exists (?q - pier) (and (at ?p ?q) (moored ?v ?q) (lit ?q)))
   :effect (and (painted ?v) (not (rusty ?v))))
 (:action ring :parameters (?p - person)
   :precondition (at ?p home_bar_1)
   :effect (and (when (bell) (not (bell))) (when (not (bell)) (bell)) (lit home_bar_1)))
 (:action scrape :parameters (?p - person ?v - vehicle)
   :precondition (exists (?q - pier) (and (at ?p ?q) (moored ?v ?q)))
   :effect (not (rusty ?v)))
)
"""
GRAMMAR = '''
grammar :: """
{
  "intro": [{"rhs": "You stand on the shore. #piers# Your task is to: paint every boat."}],
  "piers": [{"rhs": "There are [{q.indefinite + ' ' + q.name | lit(q:pier)}]."}],
  "list_empty": [{"rhs": "none"}], "list_separator": [{"rhs": ", "}],
  "list_last_separator": [{"rhs": " and "}],
  "there": [
    {"condition": "at(p:person, q:pier) & moored(v:vehicle, q:pier) & painted(v:vehicle)",
     "rhs": "Something bright is moored here, beside [{v.name | moored(v:vehicle, q:pier)}]."},
    {"condition": "at(p:person, q:pier)", "rhs": "Here: [{v.name | at(p:person, q:pier) & moored(v:vehicle, q:pier)}]."},
    {"rhs": "Nothing is here."}
  ],
  "rust": [{"condition": "not_rusty(v:vehicle)", "rhs": "No rust is left on {v.name}."},
           {"rhs": "It never had any."}],
  "wet": [{"rhs": "Got wet: [{v.name | not_dry(v:vehicle)}]."}]
}
""";
action walk { template :: "walk from {a.name} to {b.name}"; feedback :: "You walk. #there#"; }
action board { template :: "board {v}"; feedback :: "#wet#"; }
action leave { template :: "leave {v}"; feedback :: "#there#"; }
action row { template :: "row {v} to {b}"; feedback :: "Splash. #there#"; }
action paint { template :: "paint {v}"; feedback :: "#rust# #piers#"; }
action ring { template :: "ring"; feedback :: "Ding. #piers#"; }
action scrape { template :: "scrape {v}"; feedback :: "#rust#"; }
'''
PROBLEM = """
(define (problem p) (:domain harbour)
 (:objects ann - person east_bar_1 west_bar_1 - pier gull_bar_1 tern_bar_1 - boat log_bar_1 - raft)
 (:init (at ann home_bar_1) (joined home_bar_1 east_bar_1) (joined east_bar_1 west_bar_1) (moored gull_bar_1 east_bar_1) (moored tern_bar_1 home_bar_1)
   (moored log_bar_1 home_bar_1) (lit east_bar_1) (rusty gull_bar_1) (dry log_bar_1))
 (:goal (and (forall (?v - boat) (painted ?v)) (or (bell) (lit west_bar_1)))))
"""


def write(folder: pathlib.Path, **texts) -> types.Task:
    folder.mkdir(parents=True)
    texts = {"pddl_domain": DOMAIN, "grammar": GRAMMAR, "pddl_problem": PROBLEM} | texts
    (folder / "game.tw-pddl").write_text(json.dumps(texts))
    return task_of(folder)


def test_other_domains_are_played_alike(stock, tmp_path):
    task, own = write(tmp_path / "harbour"), native()
    for seed in range(3):
        lock_step(stock, own, task, 60, seed)
    plan = ["ring", "board log 1", "row log 1 to east 1", "paint gull 1", "row log 1 to home 1"]
    lock_step(stock, own, task, 6, 0, [*plan, "paint tern 1"])
    assert own.step("").won


@pytest.mark.parametrize(
    "old, new, expected",
    [
        ("(:action walk", "(:derived (dry ?v) (painted ?v)) (:action walk", "derived"),
        (
            ":effect (not (rusty ?v)))",
            ":effect (forall (?w - boat) (not (rusty ?w))))",
            "universal",
        ),
        ("(lit home_bar_1)))", "(lit home_bar_1) (when (bell) (painted log))))", "painted"),
        (":action scrape", ":action polish", "action polish"),
    ],
)
def test_what_cannot_be_compiled_is_named(old, new, expected, tmp_path):
    assert old in DOMAIN
    domain, name = DOMAIN.replace(old, new), expected.replace(" ", "-")
    domain = domain.replace(
        "(:constants", "(:constants log - raft" if "log" in new else "(:constants"
    )
    task = write(tmp_path / name, pddl_domain=domain)
    with pytest.raises(envs.EnvError, match=f"native cannot compile .*{expected}") as error:
        native().reset(task)
    assert task.path in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "goal",
    [
        "(and)",
        "(at ann home_bar_1)",
        "(not (bell))",
        "(exists (?q - pier) (joined ?q west_bar_1))",
        "(forall (?v - vehicle) (or (rusty ?v) (painted ?v)))",
        "(exists (?q - pier) (forall (?v - vehicle) (not (moored ?v ?q))))",
        "(and (joined east_bar_1 west_bar_1) (exists (?v - boat) (and (painted ?v) (bell))))",
        "(joined east_bar_1 west_bar_1)",
        "(joined west_bar_1 west_bar_1)",
        "(and (bell) (exists (?v - raft) (and (aboard ann ?v) (joined west_bar_1 home_bar_1))))",
        # Of those above, what holds at the start is refused by both; with the bell it is played.
        "(and (at ann home_bar_1) (bell))",
        "(and (bell) (exists (?q - pier) (joined ?q west_bar_1)))",
        "(and (bell) (exists (?q - pier) (forall (?v - vehicle) (not (moored ?v ?q)))))",
    ],
)
def test_every_form_of_goal_is_decided_alike(goal, stock, tmp_path):
    problem = PROBLEM.split("(:goal")[0] + f"(:goal {goal}))"
    task = write(tmp_path / "goal", pddl_problem=problem)
    try:
        stock.reset(task)
    except envs.EnvError:
        with pytest.raises(envs.EnvError, match="holds|reached|won before"):
            native().reset(task)
        return
    plan = ["ring", "board log 1", "row log 1 to east 1", "paint gull 1"]
    lock_step(stock, native(), task, 25, 1, plan)


def test_a_command_that_could_mean_two_things_is_refused(tmp_path):
    """Which of two instances the published engine takes depends on its numbering of facts."""
    grammar = GRAMMAR.replace('"leave {v}"', '"leave the vessel"')
    env = native()
    env.reset(write(tmp_path / "game", grammar=grammar))
    env.step("board log 1")
    with pytest.raises(envs.EnvError, match="action leave the command 'leave the vessel'"):
        env.step("board tern 1")


def play(env: envs.Environment, task: types.Task, num_steps: int = 60, seed: int = 0) -> None:
    rng, seen = random.Random(seed), env.reset(task)
    for _ in range(num_steps):
        seen = env.step(pick(rng, seen.actions))
    env.close()


@contextlib.contextmanager
def traced() -> Iterator[Callable[[], int]]:
    """Yields a function that says how many bytes were allocated since and are still held."""
    gc.collect()
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_a_game_knows_how_much_memory_it_takes(homes, tmp_path):
    """In the smallest and in the largest rooms, new and after 16 episodes."""
    room = scene_games.scene_room(38)
    kitchen = scene_games.write_game(tmp_path / "k", room, TASK_TYPES[0], SCENE_KINDS * 4, 0)
    for i, task in enumerate((homes[0], task_of(kitchen))):
        play(native(memory_mb=257), task)  # what all such games share
        env = native(memory_mb=258 + i)
        with traced() as allocated:
            for seed in range(17):
                play(env, task, num_steps=0 if seed == 0 else 60, seed=seed)
                if seed in (0, 1, 16):
                    gc.collect()
                    assert env._games.nbytes == pytest.approx(allocated(), rel=0.3)


def test_memory_does_not_grow_with_the_number_of_games(tmp_path):
    """Of 48 games in scenes, of which each would take 0.6 MB and more for ever, about a third fit."""
    index = households.generate_even(tmp_path, num=48, seed=2, rooms="scenes")
    tasks = [task_of(tmp_path / entry["path"]) for entry in index["games"]]
    play(native(memory_mb=257), tasks[0])
    env, seen = native(memory_mb=16), []
    with traced() as allocated:
        for task in tasks:
            play(env, task)
            assert env._games.nbytes <= 16e6
            seen.append(allocated())
    assert len(env._games) < len(tasks) / 2
    assert max(seen) < 1.2 * 16e6
    assert max(seen[24:]) < 1.1 * max(seen[:24])


def test_a_game_that_takes_too_much_begins_anew(homes):
    env = native(memory_mb=3)
    for seed in range(12):
        play(env, homes[0], seed=seed)
        assert env._games.nbytes < 1e6  # a quarter of all, and what a single state adds
    assert len(env._games) == 1


def test_what_is_dropped_is_freed_at_once(homes):
    """States and texts hold each other; workers search for such cycles only seldom."""
    env = NativeAlfworld(GameStore(open_game, max_bytes=1))  # keeps the game that it plays alone

    def remembered() -> int:
        return sum(type(o).__name__ in ("Game", "_Record", "Group") for o in gc.get_objects())

    def played(task: types.Task) -> int:
        rng, seen = random.Random(0), env.reset(task)
        for _ in range(60):
            seen = env.step(pick(rng, seen.actions))
        return remembered()

    gc.collect()
    gc.disable()
    try:
        env.reset(homes[0])
        fresh, full = remembered(), played(homes[0])
        assert full > fresh + 30
        for task in homes[1:]:
            played(task)
        assert played(homes[0]) == full  # nothing is left of the others
        env.reset(homes[0])
        env._game.forget()
        assert remembered() <= fresh
    finally:
        gc.enable()
