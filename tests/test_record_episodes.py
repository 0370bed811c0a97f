"""Episode records: token pieces, masks and log-probabilities, and advantages against a numpy loop."""

import json

import numpy as np
import pytest
from doubles import ByteTokenizer, make_task

from evolving_rl_jax.config import default_config
from evolving_rl_jax.record.episodes import episode_records, token_pieces
from evolving_rl_jax.rollout.evolve import Candidate, Experience, Source
from evolving_rl_jax.skills.schema import Skill
from evolving_rl_jax.types import ENV_ERROR, OK, Episode, Sample, Turn

K, N, R = 3, 2, 2
TOKENIZER = ByteTokenizer()


def _sample(given, sampled):
    forced, own = TOKENIZER.encode(given), TOKENIZER.encode(sampled)
    mask = np.array([0] * len(forced) + [1] * len(own), np.float32)
    logprobs = -0.125 * np.arange(len(mask)) * mask
    return Sample(np.array(forced + own, np.int32), mask, logprobs, logprobs / 2)


def _episode(task, won, status=OK):
    samples = [_sample("room é", "win")]
    turns = [Turn("room é", "win", "win", True)]
    return Episode(task, turns, won, status, samples, reward=float(won))


def _experience(num_sources=2, *, skills=True):
    rng = np.random.default_rng(0)
    wins = (rng.random((num_sources, K, N, R)) < 0.5).astype(np.float32)
    mask, valid = np.ones_like(wins), np.ones((num_sources, N), np.float32)
    mask[0, 1, 0, 1] = wins[0, 1, 0, 1] = 0
    sources = []
    for g in range(num_sources):
        tasks = [make_task(f"t{k}") for k in range(K)]
        source = Source(make_task(f"s{g}"), retrieved=tasks)
        if skills:
            source.episode = _episode(source.task, True)
            prefix = source.episode.samples[0]
            asked = _sample("room éwin", "{}")
            assert np.array_equal(asked.tokens[: len(prefix.tokens)], prefix.tokens)
            skill = Skill("find", "open it")
            source.candidates = [
                Candidate("{}", asked, skill, "", True, "open it") for _ in range(N)
            ]
        for k, n, r in np.ndindex(K, N, R):
            status = OK if mask[g, k, n, r] else ENV_ERROR
            source.episodes[k, n, r] = _episode(tasks[k], bool(wins[g, k, n, r]), status)
        sources.append(source)
    return Experience(sources, wins, mask, valid if skills else 0 * valid)


def _config(arm, log_episodes=8):
    config = default_config()
    config.algorithm.update(arm=arm, extractor_weight=0.5, solver_weight=2.0)
    config.train.log_episodes = log_episodes
    return config


def _normalised(values, scale):
    values = np.array(values)
    spread = values.std()
    return scale * (values - values.mean()) / spread if spread else 0 * values


@pytest.mark.parametrize(
    ("arm", "solver", "extractor"),
    [("joint", 2.0, 0.5), ("solver_only", 2.0, 0.0), ("extractor_only", 0.0, 0.5)],
)
def test_advantages_are_those_of_the_arm(arm, solver, extractor):
    experience = _experience()
    records = episode_records(experience, 4, _config(arm), TOKENIZER)
    assert [r["id"] for r in records] == ["it00004-g000", "it00004-g001"]
    for g, record in enumerate(records):
        rewards = []
        for n, skill in enumerate(record["skills"]):
            rewards.append(np.mean([experience.wins[g, k, n, r] for k, r in np.ndindex(K, R)
                                    if experience.episode_mask[g, k, n, r]]))  # fmt: skip
            assert skill["reward"] == pytest.approx(rewards[-1])
        expected = _normalised(rewards, extractor)
        found = [skill["advantage"] for skill in record["skills"]]
        assert found == pytest.approx(expected.tolist(), abs=2e-4)
        for k in range(K):
            cells = [(n, r) for n, r in np.ndindex(N, R) if experience.episode_mask[g, k, n, r]]
            expected = _normalised([experience.wins[g, k, n, r] for n, r in cells], solver)
            played = {
                (e["k"], n, e["r"]): e
                for n, s in enumerate(record["skills"])
                for e in s["episodes"]
            }
            found = [played[k, n, r]["advantage"] for n, r in cells]
            assert found == pytest.approx(expected.tolist(), abs=2e-4)
        assert record["source"]["advantage"] is None
    assert played[1, 0, 1]["advantage"] is not None
    failed = next(e for e in records[0]["skills"][0]["episodes"] if (e["k"], e["r"]) == (1, 1))
    assert failed["status"] == ENV_ERROR and failed["advantage"] is None


def test_repeats_without_skills_are_recorded():
    experience = _experience(skills=False)
    (record, _) = episode_records(experience, 0, _config("grpo"), TOKENIZER)
    assert record["source"] is None and len(record["skills"]) == N
    assert [len(s["episodes"]) for s in record["skills"]] == [K * R] * N
    assert {s["valid"] for s in record["skills"]} == {None}
    wins, played = experience.wins[0, 0], experience.episode_mask[0, 0]
    expected = _normalised(wins[played > 0], 2.0)
    found = [e["advantage"] for s in record["skills"] for e in s["episodes"] if e["k"] == 0]
    assert found == pytest.approx(expected.tolist(), abs=2e-4)


def test_only_the_first_sources_are_kept():
    assert len(episode_records(_experience(), 0, _config("joint", 1), TOKENIZER)) == 1
    assert episode_records(_experience(), 0, _config("joint", 0), TOKENIZER) == []


def test_tokens_mask_and_logprobs_belong_together():
    (record, _) = episode_records(_experience(), 0, _config("joint"), TOKENIZER)
    record = json.loads(json.dumps(record, allow_nan=False))
    (sequence,) = record["source"]["sequences"]
    assert "".join(sequence["pieces"]) == "room éwin"
    assert sequence["mask"] == "0" * 7 + "111" and sequence["shared"] == 0
    assert sequence["logprobs"] == [-0.875, -1.0, -1.125]
    assert sequence["sampling_logprobs"] == [-0.4375, -0.5, -0.5625]
    (extraction,) = record["skills"][0]["sequences"]
    assert extraction["shared"] == 10 and extraction["pieces"] == ["{", "}"]
    assert extraction["mask"] == "11" and extraction["logprobs"] == [-1.25, -1.375]


@pytest.mark.parametrize("text", ["plain", "é at 🙂 end", "\ufffd", "🙂" * 3, "a\ufffdb"])
def test_pieces_joined_are_the_text(text):
    ids = TOKENIZER.encode(text)
    pieces = token_pieces(ids, TOKENIZER.decode)
    assert len(pieces) == len(ids) and "".join(pieces) == text


def test_a_character_that_is_cut_off_is_shown_as_such():
    ids = TOKENIZER.encode("a🙂")[:-1]
    pieces = token_pieces(ids, TOKENIZER.decode)
    assert len(pieces) == 4 and "".join(pieces) == "a\ufffd"
