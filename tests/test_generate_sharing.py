"""What the four stages share in the cache, counted by stage, with chat prompts and a real engine."""

import jax
import numpy as np
import pytest
from chat_models import make_tokenizer_folder
from doubles import FakePool, make_task, skill_text
from ml_collections import ConfigDict

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")

from evolving_rl_jax import models
from evolving_rl_jax.envs.alfworld.texts import TEXTS
from evolving_rl_jax.generate import Engine
from evolving_rl_jax.models.tokenizer import load_tokenizer
from evolving_rl_jax.rollout import evolve
from evolving_rl_jax.rollout.episode import Driver, PlaySettings
from evolving_rl_jax.rollout.prompts import make_prompts
from evolving_rl_jax.skills.schema import parse_skill

K, N, R = 2, 3, 2
ROLLOUT = {"num_retrieved": K, "num_skills": N, "num_repeats": R}
ADVICE = (
    "Open every closed place before you leave it, carry one thing at a time, and heat or cool what "
    "the task wants only once it is in your hand."
)
SETTINGS = PlaySettings(6, 6, 2, 1.0, 1.0, 0)


class Retriever:
    def retrieve(self, task, k):
        return [make_task(f"{task.id} number {i}") for i in range(k)]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    folder = make_tokenizer_folder(tmp_path_factory.mktemp("chat"))
    return make_prompts("chat", load_tokenizer(folder), TEXTS)


@pytest.mark.parametrize("context", ["full", "recent"])
def test_a_trajectory_and_the_prefix_of_a_skill_are_prefilled_once(prompts, monkeypatch, context):
    candidate = evolve.make_candidate

    def parsed(raw, *rest):  # a random policy writes no skill: give it one each
        number = parsed.count = parsed.count + 1
        text = skill_text(f"skill {number}", f"Try cabinet {number} first. {ADVICE}")
        return candidate(text, *rest)

    parsed.count = 0
    monkeypatch.setattr(evolve, "make_candidate", parsed)
    cfg = models.ModelConfig(prompts.tokenizer.vocab_size, 16, 24, 1, 2, 1, 8, model_type="llama")
    engine = Engine(
        cfg, models.init(cfg, jax.random.key(0)), num_slots=16, max_length=1600,
        prefill_chunk=(64,), decode_window=6, row_buckets=(16,), column_buckets=(1600,),
        pad_id=prompts.tokenizer.pad_id,
    )  # fmt: skip
    settings = PlaySettings(*vars(SETTINGS).values())
    settings = type(settings)(**{**vars(settings), "context": context, "recent_turns": 1})
    driver = Driver(engine, FakePool(), prompts, settings, iteration=0)
    rollout = ConfigDict(
        {
            **ROLLOUT,
            "evaluate_invalid_skills": False,
            "max_skill_chars": 4000,
            "num_source_episodes": 1,
            "train_sources": False,
        }
    )
    experience = evolve.Evolver(driver, Retriever(), prompts, rollout).collect([make_task("t0")])
    (source,) = experience.sources
    assert experience.skill_valid.all() and experience.episode_mask.all()
    # Extractions: all but one find the whole trajectory (and the question, as they ask the same).
    trajectory = len(source.candidates[0].sample.tokens) - int(
        source.candidates[0].sample.loss_mask.sum()
    )
    reused = driver.reused
    assert reused["prefix", "extraction"] >= (N - 1) * (trajectory - 1)
    # Evaluation: the rules and the skill come before the task, so K * R - 1 episodes find them.
    shared = 0
    for n, c in enumerate(source.candidates):
        skill, _ = parse_skill(c.raw)
        prompt = prompts.solver_prompt(source.retrieved[0], prompts.render_skill(skill), "room")
        other = prompts.solver_prompt(make_task("else"), prompts.render_skill(skill), "room")
        common = int(np.argmin(np.equal(prompt[: len(other)], other[: len(prompt)])))
        assert common > 200, n
        shared += (K * R - 1) * common
    assert reused["prefix", "evaluation"] >= shared
    if context == "full":
        tokens = [e.samples[0].tokens for e in source.episodes.values()]
        assert reused["turn", "evaluation"] > sum(len(t) for t in tokens) / 2
    assert engine.stats.reused_tokens == sum(reused.values())
