"""Warm starts of imported policies: full and by adapters, in both styles; where they go on from; what they keep."""

from __future__ import annotations

import json
import signal

import jax
import numpy as np
import pytest
from chat_models import make_model_folder
from jax.sharding import NamedSharding, PartitionSpec

pytest.importorskip("alfworld")
pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

from evolving_rl_jax import models
from evolving_rl_jax.config import ConfigError, load_config
from evolving_rl_jax.envs.alfworld.households.plan import GamesSpec
from evolving_rl_jax.envs.alfworld.households.write import generate_games
from evolving_rl_jax.models import lora as lora_lib
from evolving_rl_jax.rollout.prompts import COMPACT_MARKERS
from evolving_rl_jax.run.folder import RunFolder
from evolving_rl_jax.run.parts import open_parts, training_mesh
from evolving_rl_jax.run.policy import export_adapter, export_policy, load_policy
from evolving_rl_jax.run.preemption import Preempted, Preemption
from evolving_rl_jax.train import cloning
from evolving_rl_jax.train.checkpoint import Checkpoints
from evolving_rl_jax.train.lessons import make_lessons, row_batches, split_groups
from evolving_rl_jax.train.saves import Saves
from evolving_rl_jax.update.optimizer import make_optimizer
from evolving_rl_jax.update.state import kept

CONFIG = """
from evolving_rl_jax.config import default_config


def get_config():
    config = default_config()
    config.env.update(check_games=0, num_workers=0)
    config.rollout.update(
        style="compact", max_turn_tokens=16, max_skill_tokens=60, num_sources=2, num_retrieved=2,
        num_skills=2, num_slots=8, max_length=640, max_steps=4,
    )
    config.train.update(row_length=640, micro_batch_rows=4, logprob_chunk=64, remat="none")
    config.warmstart.update(
        enabled=True, episodes=24, steps=12, batch_rows=4, learning_rate=3e-2, held_out=0.3, every=4
    )
    config.optimizer.update(learning_rate=1e-3)
    return config
"""
CHAT = {  # long prompts: fewer and longer rows
    "rollout__max_length": 2400, "train__row_length": 2400, "warmstart__batch_rows": 2,
    "train__micro_batch_rows": 2, "warmstart__episodes": 8, "rollout__max_steps": 3,
}  # fmt: skip
UNUSED = tuple(f"<unused_{i}>" for i in range(5))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Generated games, a tiny chat model with unused tokens, and a configuration."""
    root = tmp_path_factory.mktemp("cloning")
    spec = GamesSpec(
        num_train_households=2, num_unseen_households=1, games_per_object=4, num_heldout=6,
        num_warmstart=18,
    )  # fmt: skip
    generate_games(root / "games", seed=3, spec=spec)
    make_model_folder(root / "model", unused=UNUSED)
    (root / "config.py").write_text(CONFIG)
    return root


def load(shared, **changes):
    overrides = {"data.games": shared / "games", "model.hf_path": shared / "model"}
    overrides |= {key.replace("__", "."): value for key, value in changes.items()}
    return load_config(str(shared / "config.py"), {k: str(v) for k, v in overrides.items()})


def start(config, workdir, use, preemption=None):
    """``use(parts, mesh)`` of a run in ``workdir``."""
    folder = RunFolder(str(workdir), config)
    with open_parts(config, folder, preemption=preemption) as parts:
        return use(parts, training_mesh(config))


def log_of(workdir):
    lines = (workdir / "warmstart" / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def same(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), **(tolerance or {"rtol": 0}))


def begin_training(parts, mesh):
    """The state that training starts from, as the loop makes it."""
    lora = lora_lib.from_config(parts.config.model.lora)
    state, done = Saves(parts, make_optimizer(parts.config, 10), mesh, lora).begin()
    assert done == 0
    return jax.device_get(state)


@pytest.fixture(scope="module", params=["compact", "chat"])
def cloned(request, shared, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / request.param
    changes = {"rollout__style": request.param}
    if request.param == "chat":
        changes |= CHAT
    config = load(shared, **changes)
    return workdir, config, start(config, workdir, begin_training)


def test_all_weights_of_an_imported_policy_are_trained_and_are_the_reference(cloned, shared):
    workdir, config, state = cloned
    imported, cfg = models.load_hf(shared / "model")
    changed = jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), imported, state.params)
    assert all(jax.tree.leaves(changed))
    same(state.ref_params, state.params)
    written, written_cfg = models.load_hf(workdir / "warmstart")
    same(written, state.params)
    assert written_cfg.vocab_size == cfg.vocab_size
    same(load_policy(RunFolder(str(workdir)), "warmstart")[0], written)
    assert not (workdir / "warmstart" / "checkpoints").exists()


def test_its_log_has_the_losses_of_what_is_taught_and_of_what_is_held_out(cloned):
    log = log_of(cloned[0])
    taught = [r for r in log if "loss" in r]
    held = [(r["step"], r["held_out_loss"]) for r in log if "held_out_loss" in r]
    assert [step for step, _ in held] == [0, 4, 8, 12] and [r["step"] for r in taught] == [12]
    assert abs(held[0][1] - np.log(520)) < 0.5  # a random policy knows nothing
    assert held[-1][1] < held[0][1] - 0.5
    assert all(r["tokens_per_second"] > 0 and r["trained_tokens"] > 0 for r in taught)


def test_the_tokenizer_of_a_compact_run_has_the_markers_and_a_chat_keeps_its_own(cloned, shared):
    workdir, config, _ = cloned
    old = models.load_tokenizer(shared / "model")
    new = models.load_tokenizer(workdir / "warmstart")
    if config.rollout.style == "chat":
        assert new.special_ids == old.special_ids and not (workdir / "tokenizer").exists()
        return
    assert [new.special_ids[m] for m in COMPACT_MARKERS] == [old.special_ids[t] for t in UNUSED]
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(workdir / "warmstart")
    assert theirs.convert_tokens_to_ids("<obs>") == new.special_ids["<obs>"]


def test_adapters_are_cloned_merged_and_new_ones_start_from_the_result(shared, tmp_path):
    config = load(shared, model__lora__rank=4)
    state = start(config, tmp_path / "run", begin_training)
    imported, _ = models.load_hf(shared / "model")
    warm, _ = models.load_hf(tmp_path / "run" / "warmstart")
    same(state.ref_params, warm)
    same(warm["embedding"], imported["embedding"])
    moved = np.abs(
        np.asarray(warm["layers"]["mlp"]["up_proj"]["kernel"])
        - np.asarray(imported["layers"]["mlp"]["up_proj"]["kernel"])
    )
    assert moved.max() > 1e-3
    adapters = state.params["layers"]["attention"]["q_proj"]
    assert not adapters["lora_b"].any() and adapters["lora_a"].any()
    held = [r["held_out_loss"] for r in log_of(tmp_path / "run") if "held_out_loss" in r]
    assert held[-1] < held[0]
    _exports(tmp_path / "run", config, state, warm)


def _exports(workdir, config, state, warm):
    """An adapter names the warm start as its base; a merged policy has the markers in its tokenizer."""
    lora, out = lora_lib.from_config(config.model.lora), workdir.parent
    trained = jax.tree.map(lambda x: x + 0.01, state.params)
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint)
    mesh = training_mesh(config)
    state = jax.device_put(state._replace(params=trained), NamedSharding(mesh, PartitionSpec()))
    checkpoints.save(1, kept(state, lora), {"iteration": 1})
    checkpoints.close()
    folder = RunFolder(str(workdir))
    export_adapter(folder, out / "adapter", "latest")
    raw = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert raw["base_model_name_or_path"] == str(workdir / "warmstart")
    export_policy(folder, out / "policy", "latest")
    same(models.load_hf(out / "policy")[0], lora_lib.merge(warm, trained, lora), rtol=1e-6)
    assert "<obs>" in models.load_tokenizer(out / "policy").special_ids


class _Notice(Preemption):
    """A notice that comes when it is asked for the n-th time."""

    def __init__(self, at):
        super().__init__()
        self.at, self.asked = at, 0

    @property
    def reason(self):
        self.asked += 1
        return signal.SIGTERM.name if self.asked >= self.at else ""

    @reason.setter
    def reason(self, value):
        pass


@pytest.mark.parametrize("rank", [4, pytest.param(0, marks=pytest.mark.slow)])
def test_a_warm_start_that_was_ended_goes_on_from_its_checkpoint(
    shared, tmp_path, monkeypatch, rank
):
    monkeypatch.setattr(cloning, "_SHOWN", 2)
    config = load(shared, model__lora__rank=rank)
    straight = start(config, tmp_path / "straight", begin_training)
    with pytest.raises(Preempted):
        start(config, tmp_path / "run", begin_training, preemption=_Notice(4))
    assert not (tmp_path / "run" / "warmstart" / "done").exists()
    steps = [int(p.name) for p in (tmp_path / "run" / "warmstart" / "checkpoints").iterdir()]
    assert max(steps) == 8
    ended = log_of(tmp_path / "run")
    resumed = start(config, tmp_path / "run", begin_training)
    same(resumed.ref_params, straight.ref_params)

    def losses(log):
        return [{k: v for k, v in r.items() if k != "tokens_per_second"} for r in log]

    assert losses(log_of(tmp_path / "run")) == losses(log_of(tmp_path / "straight"))
    assert losses(ended) == losses(log_of(tmp_path / "run"))[: len(ended)]


@pytest.mark.parametrize("share", [0.0, 0.6])
def test_the_share_of_extractions_is_what_is_asked_for(shared, tmp_path, share):
    config = load(shared, warmstart__extraction_share=share, warmstart__episodes=40)

    def count(parts, _mesh):
        extract = parts.prompts.ids["<extract>"]
        samples = make_lessons(parts).taught
        return np.mean([extract in s.tokens for s in samples]), len(samples)

    found, number = start(config, tmp_path / "run", count)
    if share:
        assert share <= found < share + 1 / number + 1e-9
    else:
        assert 0.1 < found < 0.45


def _talk(i):
    turns = [("user", f"Where is mug {i}?"), ("assistant", f"In cabinet {i % 3}.")]
    return {"messages": [{"role": r, "content": c} for r, c in turns]}


GIVEN = {"warmstart__source": "conversations", "warmstart__steps": 8}


def test_conversations_are_learned_and_held_out_by_line(shared, tmp_path):
    path = tmp_path / "talk.jsonl"
    path.write_text("".join(json.dumps(_talk(i)) + "\n" for i in range(20)))
    config = load(shared, rollout__style="chat", warmstart__path=path, **GIVEN)
    start(config, tmp_path / "run", begin_training)
    held = [r["held_out_loss"] for r in log_of(tmp_path / "run") if "held_out_loss" in r]
    assert held[-1] < held[0] - 0.5
    path.unlink()  # a warm start that is made needs it no longer
    start(config, tmp_path / "run", lambda parts, mesh: None)


def test_conversations_that_cannot_be_used_are_counted_and_nothing_is_written(shared, tmp_path):
    path = tmp_path / "talk.jsonl"
    bad = {"messages": [{"role": "tool", "content": "x"}]}
    path.write_text("".join(json.dumps(x) + "\n" for x in (_talk(0), bad, _talk(1))))
    config = load(shared, rollout__style="chat", warmstart__path=path, **GIVEN)
    message = (
        r"config.warmstart.path .* 1 of 3 conversations: 1 with an unknown role \(line 2 \(tool"
    )
    with pytest.raises(ConfigError, match=message):
        start(config, tmp_path / "run", begin_training)
    assert not (tmp_path / "run").exists()
    changes = {**GIVEN, "warmstart__skip_bad": True, "rollout__style": "chat"}
    config = load(shared, warmstart__path=path, **changes)
    lessons = start(config, tmp_path / "run", lambda parts, _: make_lessons(parts))
    assert len(lessons.taught) == len(lessons.held_out) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"warmstart__source": "episodes"},
            "config.warmstart.path must be the file or folder with",
        ),
        (
            {"warmstart__path": "x"},
            "config.warmstart.path must be empty with warmstart.source 'demo",
        ),
        (
            {"warmstart__source": "conversations", "warmstart__path": "x"},
            "config.rollout.style must be a chat style with warmstart.source 'conversations'",
        ),
        (
            {
                "warmstart__source": "episodes",
                "warmstart__path": "x",
                "warmstart__extraction_share": 0.5,
            },
            "config.warmstart.extraction_share must be 0 with warmstart.source 'episodes'",
        ),
    ],
)
def test_sources_that_do_not_fit_are_one_line_with_the_key(shared, changes, message):
    with pytest.raises(ConfigError, match=message):
        load(shared, **changes)


def test_a_run_learns_from_what_another_has_won(shared, tmp_path):
    """The record of a demonstration, as an episode of an earlier run, is the demonstration."""
    from evolving_rl_jax.record.episodes import source_record
    from evolving_rl_jax.rollout.evolve import Source
    from evolving_rl_jax.types import OK, Episode

    config = load(shared, warmstart__held_out=0)

    def record(parts, _mesh):
        samples = make_lessons(parts).taught[:6]
        task = parts.tasks[0]
        records = []
        for sample in samples:
            episode = Episode(task, [], True, OK, [sample])
            source = Source(task, episode, retrieved=[task])
            records.append(
                source_record(
                    source,
                    "x",
                    0,
                    extractor=np.zeros(1),
                    solver=np.zeros((1, 1, 1)),
                    decode=parts.tokenizer.decode,
                )  # fmt: skip
            )
        parts.folder.write_episodes(0, records)
        return samples

    samples = start(config, tmp_path / "first", record)
    changes = {"warmstart__source": "episodes", "warmstart__path": tmp_path / "first" / "episodes"}
    config = load(shared, warmstart__held_out=0, **changes)
    lessons = start(config, tmp_path / "second", lambda parts, _: make_lessons(parts))
    assert len(lessons.taught) == len(samples)
    for ours, theirs in zip(lessons.taught, samples, strict=True):
        assert ours.tokens.tolist() == theirs.tokens.tolist()
        assert ours.loss_mask.tolist() == theirs.loss_mask.tolist()
    config = load(shared, **{**changes, "warmstart__path": tmp_path})
    with pytest.raises(ConfigError, match=r"config.warmstart.path: .* must hold \*.jsonl.gz"):
        start(config, tmp_path / "third", begin_training)
    assert not (tmp_path / "third").exists()


def test_without_two_groups_nothing_can_be_held_out():
    with pytest.raises(
        ConfigError, match="config.warmstart.held_out must be 0 where there are not"
    ):
        split_groups(["a"], str, 0.5, 0)


def test_a_policy_without_room_for_the_markers_is_refused_before_anything_is_written(
    shared, tmp_path
):
    make_model_folder(tmp_path / "model")
    config = load(shared, model__hf_path=tmp_path / "model")
    message = r"config.model.hf_path: .*model must have 5 special tokens that nothing uses"
    with pytest.raises(ConfigError, match=message):
        start(config, tmp_path / "run", begin_training)
    assert not (tmp_path / "run").exists()


def test_the_weight_of_what_is_read_is_given_to_every_token_that_is_not_taught(shared, tmp_path):
    config = load(shared, warmstart__observation_weight=0.25, warmstart__held_out=0.0)

    def first_batches(parts, mesh):
        taught = make_lessons(parts).taught
        plain = load(shared, warmstart__held_out=0.0)
        return [next(row_batches(taught, c, seed=0)) for c in (config, plain)]

    weighted, plain = start(config, tmp_path / "run", first_batches)
    used, taught = plain["segment_ids"] > 0, plain["loss_mask"] > 0
    assert (taught <= used).all() and 0 < taught.sum() < used.sum()
    np.testing.assert_array_equal(weighted["tokens"], plain["tokens"])
    expected = np.where(taught, 1.0, np.where(used, 0.25, 0.0))
    np.testing.assert_array_equal(weighted["loss_mask"], expected.astype(np.float32))
