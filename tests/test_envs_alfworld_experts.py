"""Scripted players: how often they win, by what they know, in a room written from scratch."""

import dataclasses

import numpy as np
import pytest

from evolving_rl_jax import envs
from evolving_rl_jax.data.tasks import load_tasks
from evolving_rl_jax.envs.alfworld.experts import SearchingExpert, Walkthrough, play
from evolving_rl_jax.envs.alfworld.households import problem as pddl_problem
from evolving_rl_jax.envs.alfworld.households.scenes import usual_places
from evolving_rl_jax.envs.alfworld.households.write import generate_even
from evolving_rl_jax.envs.alfworld.names import TASK_TYPES
from evolving_rl_jax.envs.base import EnvError
from evolving_rl_jax.types import Task

pytest.importorskip("alfworld")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    path = tmp_path_factory.mktemp("games")
    generate_even(path, num=600, seed=3)
    return load_tasks(path)


class ToyRoom:
    """The rules of the room, written from scratch, on the facts that a task lists."""

    def __init__(self, task):
        self.task, self.at, self.held = task, None, None
        self.where = dict(task.meta["things"])
        self.places = list(pddl_problem.receptacle_classes())
        self.open = {p for p in self.places if p.split()[0] not in self._closed()}
        self.state, self.lit = set(), False

    @staticmethod
    def _closed():
        return ("cabinet", "drawer", "fridge", "microwave")

    def actions(self):
        out = ["look", *(f"go to {p}" for p in self.places if p != self.at)]
        verbs = {"sinkbasin 1": "clean", "microwave 1": "heat", "fridge 1": "cool"}
        if self.held and self.at in verbs:  # also through a closed door, as in the engine
            out.append(f"{verbs[self.at]} {self.held} with {self.at}")
        if self.at and self.at not in self.open:
            return [*out, f"open {self.at}"]
        here = [t for t, p in self.where.items() if p == self.at]
        if self.held:
            out += [f"move {self.held} to {self.at}"] if self.at else []
        else:
            out += [f"take {t} from {self.at}" for t in here if t != "desklamp 1"]
        return [*out, *(["use desklamp 1"] if "desklamp 1" in here else [])]

    def step(self, action):
        verb, *rest = action.split()
        if verb in ("clean", "heat", "cool"):
            self.state.add((verb, self.held))
            return f"You {verb} the {self.held} using the {self.at}."
        if verb == "go":
            self.at = " ".join(rest[1:])
            return f"You arrive at {self.at}. {self._seen()}"
        if verb == "open":
            self.open.add(self.at)
            return f"You open the {self.at}. {self._seen()}"
        if verb == "take":
            self.held = " ".join(rest[:2])
            self.where[self.held] = None
            return f"You pick up the {self.held} from the {self.at}."
        if verb == "move":
            thing, self.held = self.held, None
            self.where[thing] = self.at
            return f"You move the {thing} to the {self.at}."
        self.lit = self.lit or verb == "use"
        return "You turn on the desklamp 1." if verb == "use" else "You are facing it."

    def _seen(self):
        if self.at not in self.open:
            return f"The {self.at} is closed."
        here = ", and ".join(f"a {t}" for t, p in self.where.items() if p == self.at) or "nothing"
        if self.at.split()[0] in self._closed():
            return f"The {self.at} is open. In it, you see {here}."
        return f"On the {self.at}, you see {here}."

    def won(self):
        obj, kind = self.task.meta["object"], self.task.task_type
        if kind == "look_at_obj_in_light":
            held = bool(self.held) and self.held.split()[0] == obj
            return held and self.lit and self.at == "sidetable 1"
        target = self.task.meta["target"] + " 1"
        there = [t for t, p in self.where.items() if p == target and t.split()[0] == obj]
        if kind == "pick_two_obj_and_place":
            return len(there) == 2
        verb = {"clean": "clean", "heat_": "heat", "cool_": "cool"}.get(kind[5:10])
        return any(verb is None or (verb, t) in self.state for t in there)


def play_toy(task, expert):
    """(won, steps) in the toy room within the task's own limit."""
    room, text = ToyRoom(task), "You are in the middle of a room."
    for steps in range(1, task.step_limit + 1):
        action = expert.act(text, room.actions())
        assert action in room.actions()
        text = room.step(action)
        if room.won():
            return True, steps
    return False, task.step_limit


def test_walkthroughs_win_the_toy_room_in_the_shortest_number_of_steps(tasks):
    for task in tasks:
        assert play_toy(task, Walkthrough(task)) == (True, task.meta["shortest"])


def success(tasks, **options):
    """Share of games that a searcher with ``beliefs(task, rng)`` wins."""
    make_beliefs = options.pop("beliefs", lambda task, rng: {})
    wins = []
    for i, task in enumerate(tasks):
        rng = np.random.default_rng([7, i])
        wins.append(
            play_toy(task, SearchingExpert(task, rng, make_beliefs(task, rng), **options))[0]
        )
    return np.mean(wins)


def right(task, rng):
    return {task.meta["object"]: task.meta["place"]}


def wrong(task, rng):
    places = sorted(p for p in task.meta["habits"].values() if p != task.meta["place"])
    return {task.meta["object"]: str(rng.choice(places))}


def four_others(task, rng):
    others = sorted(o for o in task.meta["habits"] if o != task.meta["object"])
    return {o: task.meta["habits"][o] for o in others[:4]}


def test_knowing_the_place_decides_a_game(tasks):
    """Two of six places fit into the limit; after a wrong one, one of the other five."""
    assert success(tasks, beliefs=right) == 1.0
    assert success(tasks, beliefs=four_others) == 1.0
    assert success(tasks) == pytest.approx(2 / 6, abs=0.06)
    assert success(tasks, beliefs=wrong) == pytest.approx(1 / 5, abs=0.06)


def test_what_is_excluded_is_searched_last(tasks):
    wins = []
    for i, task in enumerate(tasks):
        rng = np.random.default_rng([8, i])
        others = sorted(p for p in task.meta["habits"].values() if p != task.meta["place"])
        excluded = {task.meta["object"]: set(others[:4])}
        wins.append(play_toy(task, SearchingExpert(task, rng, excluded=excluded))[0])
    assert np.mean(wins) == 1.0


def test_noise_costs_games_and_is_recovered_from(tasks):
    noisy = success(tasks, beliefs=right, noise=0.15)
    assert 0.6 < noisy < 0.98
    assert success(tasks, beliefs=right, noise=0.4) < noisy
    assert success(tasks, beliefs=right, ignore_belief=1.0) < 0.5
    assert success(tasks, beliefs=right, random_place=1.0) < 0.5


def test_experts_name_their_target_and_refuse_nonsense(tasks):
    rng = np.random.default_rng(0)
    assert SearchingExpert(tasks[0], rng).target == tasks[0].meta["object"]
    with pytest.raises(ValueError, match="must be worded as ALFWorld words its tasks"):
        SearchingExpert(dataclasses.replace(tasks[0], text="tidy up"), rng)
    with pytest.raises(ValueError, match=r"noise must be a probability in \[0, 1\], got 2"):
        SearchingExpert(tasks[0], rng, noise=2)
    with pytest.raises(ValueError, match="must have a walkthrough"):
        Walkthrough(dataclasses.replace(tasks[0], meta={}))


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("put a mug in coffeemachine", "mug"),
        ("put some watch on safe", "watch"),
        ("clean some cloth and put it in cabinet", "cloth"),
        ("put a cool lettuce in countertop", "lettuce"),
        ("find two pen and put them in drawer", "pen"),
        ("examine the book with the desklamp", "book"),
    ],
)
def test_the_searcher_reads_both_wordings_of_alfworld(tasks, text, target):
    task = dataclasses.replace(tasks[0], text=text)
    assert SearchingExpert(task, np.random.default_rng(0)).target == target


# -- on the engine, in both kinds of rooms ---------------------------------------------------------


@pytest.fixture(scope="module", params=["compact", "scenes"])
def played(request, tmp_path_factory):
    """Room kind, and by player: wins by task type and mean steps, of 60 games within 50 steps."""
    rooms = request.param
    generate_even(path := tmp_path_factory.mktemp(rooms), num=60, seed=8, rooms=rooms)
    games = load_tasks(path)
    usual = usual_places() if rooms == "scenes" else None

    def search(task, i, **options):
        return SearchingExpert(task, np.random.default_rng([4, i]), usual=usual, **options)

    players = {
        "walkthrough": lambda task, i: Walkthrough(task),
        "search": search,
        "noisy": lambda task, i: search(task, i, noise=0.1),
        "knows": lambda task, i: search(task, i, beliefs=right(task, None)),
    }
    env = envs.make("alfworld")
    results = {}
    for name, make in players.items():
        ends = [(t.task_type, *play(env, t, make(t, i))) for i, t in enumerate(games)]
        wins = {k: np.mean([won for kind, won, _ in ends if kind == k]) for k in TASK_TYPES}
        results[name] = wins, np.mean([steps for *_, steps in ends])
    return rooms, results


def test_experts_win_all_six_task_types_within_fifty_steps(played):
    _, results = played
    assert set(results["walkthrough"][0].values()) == {1.0}
    assert min(results["search"][0].values()) >= 0.9
    assert min(results["knows"][0].values()) >= 0.9
    assert min(results["noisy"][0].values()) >= 0.7
    assert len(results["noisy"][0]) == 6


def test_searching_takes_steps_that_knowing_saves_and_noise_costs(played):
    rooms, results = played
    steps = {name: mean for name, (_, mean) in results.items()}
    assert steps["walkthrough"] <= steps["knows"] < steps["search"] < steps["noisy"]
    assert steps["search"] > steps["knows"] + (3 if rooms == "compact" else 4)


def test_common_sense_saves_steps_in_scenes(tmp_path):
    generate_even(tmp_path, num=24, seed=9, rooms="scenes")
    env, steps = envs.make("alfworld"), {}
    for name, usual in (("common sense", usual_places()), ("none", None)):
        players = [
            SearchingExpert(t, np.random.default_rng(i), usual=usual)
            for i, t in enumerate(load_tasks(tmp_path))
        ]
        steps[name] = [
            play(env, t, p)[1] for t, p in zip(load_tasks(tmp_path), players, strict=True)
        ]
    assert np.mean(steps["common sense"]) < 0.8 * np.mean(steps["none"])


class Room(ToyRoom):
    """Two places at one standing point: the agent cannot go from one to the other, nor needs to."""

    def actions(self):
        shared = {"microwave 1", "countertop 1"}
        if self.at not in shared:
            return super().actions()
        other = next(iter(shared - {self.at}))
        found = [a for a in super().actions() if a != f"go to {other}"]
        if self.held and other in self.open:
            found.append(f"move {self.held} to {other}")
        return found

    def step(self, action):
        if action.startswith("move"):
            self.at = " ".join(action.split()[-2:])
        return super().step(action)


def test_a_target_at_the_same_standing_point_needs_no_way(tasks):
    heats = [t for t in tasks if t.task_type == "pick_heat_then_place_in_recep"]
    heats = [t for t in heats if t.meta["target"] == "countertop"]
    assert heats
    for task in heats:
        room, text = Room(task), "You are in the middle of a room."
        expert = SearchingExpert(task, np.random.default_rng(0), right(task, None))
        for _ in range(task.meta["shortest"]):
            text = room.step(expert.act(text, room.actions()))
        assert room.won()


def test_a_failed_environment_has_no_result(tasks):
    env = envs.make("alfworld")
    with pytest.raises(EnvError, match="nowhere"):
        play(env, dataclasses.replace(tasks[0], path="/nowhere"), Walkthrough(tasks[0]))


@pytest.mark.parametrize("belief", [{}, {"mug": "countertop 1"}])
def test_what_is_to_be_heated_may_lie_where_it_will_be_put(belief):
    task = Task("a", "alfworld", "train", "pick_heat_then_place_in_recep",
                "put a hot mug in countertop", "", "h",
                meta={"object": "mug", "target": "countertop", "things": {"mug 1": "countertop 1"}})  # fmt: skip
    expert = SearchingExpert(task, np.random.default_rng(0), belief)
    assert play_toy(task, expert)[0]


def test_what_lies_there_already_is_not_taken():
    meta = {"object": "mug", "target": "countertop"}
    meta["things"] = {"mug 1": "countertop 1", "mug 2": "cabinet 1"}
    task = Task("a", "alfworld", "train", "pick_and_place_simple", "put a mug in countertop", "",
                "h", meta=meta)  # fmt: skip
    expert = SearchingExpert(task, np.random.default_rng(0), {"mug": "countertop 1"})
    room, text = ToyRoom(task), "You are in the middle of a room."
    for _ in range(6):
        action = expert.act(text, room.actions())
        assert not action.startswith("take mug 1")
        text = room.step(action)
