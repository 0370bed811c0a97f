"""Generated household games: played by the published engine, deterministic, fit for their use."""

import collections
import hashlib
import json
import pathlib
import random
import re

import numpy as np
import pytest

from evolving_rl_jax.data.tasks import load_tasks
from evolving_rl_jax.envs.alfworld.households.homes import (
    HABIT_CLASSES,
    MAX_HOUSEHOLDS,
    household_names,
    make_households,
)
from evolving_rl_jax.envs.alfworld.households.plan import GamesSpec, plan_games
from evolving_rl_jax.envs.alfworld.households.write import generate_even, generate_games
from evolving_rl_jax.envs.alfworld.names import HELDOUT_TYPES, TASK_TYPES, TRAINED_TYPES

pytest.importorskip("alfworld")

SPEC = GamesSpec(
    num_train_households=10,
    games_per_object=4,
    num_seen=8,
    num_unseen_households=8,
    num_heldout=24,
    num_warmstart=36,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("games")
    generate_games(path, seed=3, spec=SPEC)
    return path


@pytest.fixture(scope="module")
def tasks(folder):
    return load_tasks(folder)


def split(tasks, name):
    return [task for task in tasks if task.split == name]


def stock_engine():
    import textworld
    from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
    from textworld.envs import PddlEnv

    return AlfredDemangler(PddlEnv(textworld.EnvInfos(won=True, admissible_commands=True)))


# -- the published engine ------------------------------------------------------------------------


def won_by_walkthrough(games):
    """Plays them on the published engine; every command must be one that it offers."""
    env = stock_engine()
    for task in games:
        env.load(f"{task.path}/game.tw-pddl")
        state = env.reset()
        assert f"Your task is to: {task.text}." in state.feedback
        for command in task.meta["walkthrough"]:
            assert not state.won, task.id
            assert command in state.admissible_commands, (task.id, command)
            state, _, done = env.step(command)
        assert state.won and done, task.id


@pytest.mark.parametrize("rooms", ["compact", "scenes"])
def test_new_games_are_won_by_their_walkthrough_on_the_published_engine(tmp_path, rooms):
    generate_even(tmp_path, num=12, seed=20240611, split="fresh", rooms=rooms)
    games = load_tasks(tmp_path, "fresh")
    assert collections.Counter(t.task_type for t in games) == dict.fromkeys(TASK_TYPES, 2)
    won_by_walkthrough(games[:3])


@pytest.mark.slow
@pytest.mark.parametrize("rooms", ["compact", "scenes"])
def test_sixty_of_a_thousand_games_are_won_on_the_published_engine(tmp_path, rooms):
    generate_even(tmp_path, num=1000, seed=20240612, rooms=rooms)
    won_by_walkthrough(random.Random(1).sample(load_tasks(tmp_path), 60))


def test_the_agent_reads_the_same_name_for_the_same_place_in_every_game(tasks):
    """Opens what the meta data says, on the published engine, in games of one household."""
    env = stock_engine()
    household = split(tasks, "train")[0].group
    games = [t for t in tasks if t.group == household]
    seen_rooms = set()
    for task in games[:: len(games) // 3]:
        env.load(f"{task.path}/game.tw-pddl")
        state = env.reset()
        seen_rooms.add(state.feedback.split("Your task")[0])
        for obj, place in task.meta["habits"].items():
            env.step(f"go to {place}")
            state, _, _ = env.step(f"open {place}")
            assert re.search(rf"you see .*\ba {obj} 1\b", state.feedback), (task.id, state.feedback)
        env.step("go to sidetable 1")
        state, _, _ = env.step("examine sidetable 1")
        on_table = {t for t, p in task.meta["things"].items() if p == "sidetable 1"}
        assert set(re.findall(r"\ba (\w+ \d+)", state.feedback)) == on_table
    assert len(seen_rooms) == 1


def test_the_published_loader_takes_a_split(folder, capsys):
    from alfworld.agents.environment.alfred_tw_env import AlfredTWEnv

    config = {
        "env": {"goal_desc_human_anns_prob": 0, "task_types": [1, 2, 3, 4, 5, 6]},
        "dataset": {"eval_ood_data_path": str(folder / "heldout_types"), "num_eval_games": -1},
    }
    assert AlfredTWEnv(config, train_eval="eval_out_of_distribution").num_games == 24


# -- what the splits promise ---------------------------------------------------------------------


def digest(root, names=("*",)):
    files = sorted(p for name in names for p in pathlib.Path(root).rglob(name) if p.is_file())
    parts = [str(p.relative_to(root)).encode() + p.read_bytes() for p in files]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_the_same_seed_gives_the_same_bytes(folder, tmp_path):
    generate_games(tmp_path / "a", seed=3, spec=SPEC)
    generate_games(tmp_path / "b", seed=4, spec=SPEC)
    assert digest(folder) == digest(tmp_path / "a") != digest(tmp_path / "b")


def test_compact_games_keep_their_bytes(tmp_path):
    """Measured results name a seed: the problems and facts of its games must never change."""
    generate_games(tmp_path, seed=0, spec=GamesSpec(num_train_households=4, num_warmstart=12))
    texts = []
    for path in sorted(tmp_path.rglob("game.tw-pddl")):
        game = json.loads(path.read_text())
        texts += [
            game["pddl_problem"],
            *game["walkthrough"],
            path.with_name("traj_data.json").read_text(),
        ]
    texts.append((tmp_path / "games.json").read_text())
    assert hashlib.sha256("\n".join(texts).encode()).hexdigest() == (
        "ec6936b828524d890e223b7ff0e22c72b7c51815bc586f79a1eaa148fc61b60a"
    )


def test_split_sizes_and_types(tasks):
    sizes = collections.Counter(t.split for t in tasks)
    assert sizes == {
        "train": 10 * 6 * 4,
        "valid_seen": 8,
        "valid_unseen": 48,
        "valid_unseen_sources": 48,
        "heldout_types": 24,
        "warmstart": 36,
    }
    for name, types in (("train", TRAINED_TYPES), ("heldout_types", HELDOUT_TYPES)):
        assert {t.task_type for t in split(tasks, name)} == set(types)
    warm = collections.Counter(t.task_type for t in split(tasks, "warmstart"))
    assert warm == dict.fromkeys(TASK_TYPES, 6)
    assert len({t.content_hash for t in tasks}) == len({t.id for t in tasks}) == len(tasks)


def test_households_of_different_splits_are_disjoint_and_unseen_words_are_known(tasks):
    groups = {name: {t.group for t in split(tasks, name)} for name in {t.split for t in tasks}}
    assert groups["valid_seen"] <= groups["train"]
    assert groups["valid_unseen"] == groups["valid_unseen_sources"] >= groups["heldout_types"]
    assert not groups["train"] & groups["valid_unseen"]
    assert not groups["warmstart"] & (groups["train"] | groups["valid_unseen"])
    words = {w for name in ("train", "warmstart") for g in groups[name] for w in g.split()}
    assert {w for g in groups["valid_unseen"] for w in g.split()} <= words


def test_habits_are_shared_by_a_household_and_one_to_a_place(tasks):
    by_group = collections.defaultdict(set)
    for task in tasks:
        by_group[task.group].add(json.dumps(task.meta["habits"], sort_keys=True))
        habits = task.meta["habits"]
        assert len(habits) == len(set(habits.values())) == 6
        assert task.meta["place"] == habits[task.meta["object"]]
        assert task.meta["things"].items() >= {f"{o} 1": p for o, p in habits.items()}.items()
        assert task.step_limit == task.meta["shortest"] + 3 == len(task.meta["walkthrough"]) + 3
    assert all(len(habits) == 1 for habits in by_group.values())
    assert len(set.union(*by_group.values())) > len(by_group) * 0.9  # households differ


def test_every_panel_game_has_a_source_of_the_same_object_and_another_task(tasks):
    by_id = {t.id: t for t in tasks}
    for task in split(tasks, "valid_unseen") + split(tasks, "heldout_types"):
        source = by_id[task.meta["source"]]
        assert source.split == "valid_unseen_sources"
        assert source.task_type in TRAINED_TYPES and source.task_type != task.task_type
        assert (source.group, source.meta["object"]) == (task.group, task.meta["object"])
        assert source.meta["target"] != task.meta["target"]


def test_similar_text_means_same_household_and_object():
    """TF-IDF in a few lines of numpy: words and pairs of words, smoothed idf, cosine."""
    games = plan_games(GamesSpec(num_warmstart=0), seed=5)

    def terms(game):
        words = game.text.split()
        return words + [" ".join(pair) for pair in zip(words, words[1:], strict=False)]

    def nearest(pool, queries, k):
        documents = [terms(g) for g in pool]
        words = sorted({w for d in documents for w in d})
        counts = [[d.count(w) for w in words] for d in documents]
        idf = np.log((1 + len(pool)) / (1 + (np.array(counts) > 0).sum(0))) + 1
        asked = [[terms(q).count(w) for w in words] for q in queries]
        a, b = np.array(asked) * idf, np.array(counts) * idf
        scores = (a / np.linalg.norm(a, axis=1, keepdims=True)) @ b.T / np.linalg.norm(b, axis=1)
        for row, query in enumerate(queries):
            same = [query.id == g.id for g in pool]
            scores[row, same] = -1
        return np.argsort(-scores, axis=1)[:, :k]

    def share_of_relatives(pool, queries, k):
        found = nearest(pool, queries, k)
        hits = [
            (pool[j].household.id, pool[j].kind) == (query.household.id, query.kind)
            for query, row in zip(queries, found, strict=True)
            for j in row
        ]
        return np.mean(hits)

    train = split(games, "train")
    assert share_of_relatives(train, train, k=3) > 0.99
    panel = split(games, "valid_unseen") + split(games, "heldout_types")
    assert share_of_relatives(split(games, "valid_unseen_sources"), panel, k=1) > 0.99


def test_task_types_are_even_and_not_tied_to_objects_or_households():
    games = plan_games(GamesSpec(num_warmstart=0), seed=0)
    for name, types in (("valid_unseen", TRAINED_TYPES), ("heldout_types", HELDOUT_TYPES)):
        members = split(games, name)
        counts = collections.Counter(g.task_type for g in members)
        assert max(counts.values()) - min(counts.values()) < 0.1 * len(members)
        per_kind = collections.Counter((g.kind, g.task_type) for g in members)
        assert len(per_kind) == len(HABIT_CLASSES) * len(types)
        assert max(per_kind.values()) < 4 * min(per_kind.values())


def test_texts_are_plain(tasks):
    for task in tasks:
        assert re.fullmatch(r"[a-z0-9 ]+", task.text), task.text
        assert task.text.startswith(f"find {task.meta['object']} at {task.group} and ")


def test_household_names_are_unique_up_to_the_limit():
    names = household_names(MAX_HOUSEHOLDS, 100, random.Random(0))
    assert len(set(names)) == MAX_HOUSEHOLDS
    assert len({h.id for h in make_households(200, 50, seed=1)}) == 200


# -- bad input -----------------------------------------------------------------------------------


def test_a_folder_that_holds_games_is_refused(folder):
    with pytest.raises(FileExistsError, match="must not hold games already, found games.json"):
        generate_games(folder, seed=3, spec=SPEC)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train_households": -1}, "num_train_households must be an integer of at least 0"),
        ({"games_per_object": 1.5}, "games_per_object must be an integer .* got 1.5"),
        ({"num_unseen_households": 0}, "num_heldout must be 0 without households, got 240"),
        ({"num_train_households": 5000}, f"at most {MAX_HOUSEHOLDS} households in all, got"),
    ],
)
def test_impossible_specs_name_the_field(options, message):
    with pytest.raises(ValueError, match=message):
        GamesSpec(**options)


def test_even_mode_checks_its_arguments(tmp_path):
    with pytest.raises(ValueError, match="num must be between 1 and .* got 0"):
        generate_even(tmp_path, num=0, seed=1)
    with pytest.raises(ValueError, match="split must be made of letters"):
        generate_even(tmp_path, num=6, seed=1, split="../x")
    assert not list(tmp_path.iterdir())
