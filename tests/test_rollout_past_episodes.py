"""Sequences of an earlier run's episode log: the ids that were trained there, of what was won alone."""

import gzip
import json
from types import SimpleNamespace

import numpy as np
import pytest
from chat_models import make_tokenizer_folder
from doubles import ByteTokenizer

pytest.importorskip("tokenizers")

from evolving_rl_jax.models.tokenizer import load_tokenizer
from evolving_rl_jax.record.episodes import source_record
from evolving_rl_jax.rollout.past_episodes import read_episodes
from evolving_rl_jax.types import OK, Episode, Sample, Task

TEXT = "<obs> You open é 你好 🙂 drawer 2. <|im_end|>"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(make_tokenizer_folder(tmp_path_factory.mktemp("tokenizer")))


def make_sample(tokenizer, *parts, step=0):
    """A sequence of (taught, text) parts, each closed by the end token."""
    end = tokenizer.special_ids.get("<|im_end|>", 1)
    pieces = [([*tokenizer.encode(text), end], taught) for taught, text in parts]
    tokens = np.asarray([i for ids, _ in pieces for i in ids], np.int32)
    mask = np.asarray([float(taught) for ids, taught in pieces for _ in ids], np.float32)
    return Sample(tokens, mask, np.zeros(len(mask)), np.zeros(len(mask)), step)


def make_record(tokenizer, rewards=(1.0, 0.0), valid=(True, True, True)):
    """A source that was won; one skill an element of ``rewards``, with which that share was won."""
    task = Task("t0", "alfworld", "train", "pick", "find mug", "/", "h")

    def episode(won, text):
        sample = make_sample(tokenizer, (0, TEXT), (1, text), (0, "Nothing."), (1, "look"))
        return Episode(task, [], won, OK, [sample], reward=9.0 * won)  # on any scale

    source = episode(True, "go to source")
    start = source.samples[0].tokens
    candidates, episodes = [], {}
    for n, reward in enumerate(rewards):
        more = make_sample(tokenizer, (0, "Write a skill."), (1, f"skill {n} é"))
        tokens = np.concatenate([start, more.tokens])
        mask = np.concatenate([np.zeros(len(start), np.float32), more.loss_mask])
        sample = Sample(tokens, mask, np.zeros(len(mask)), np.zeros(len(mask)))
        candidates.append(
            SimpleNamespace(sample=sample, raw="", skill=None, valid=valid[n], reason="", text="")
        )
        for k in range(2):
            won = k < round(2 * reward)
            episodes[k, n, 0] = episode(won, f"play {n} {k}")
    kept = SimpleNamespace(
        episode=source, candidates=candidates, episodes=episodes, retrieved=[task], attempts=[]
    )
    shape = (2, len(rewards), 1)
    record = source_record(
        kept, "x", 0, extractor=np.zeros(len(rewards)), solver=np.zeros(shape),
        decode=tokenizer.decode,
    )  # fmt: skip
    return record, source, candidates, episodes


def write(folder, *records):
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(r) + "\n" for r in records)
    (folder / "iteration_00000.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    return folder


def same(sample, other):
    return (
        sample.tokens.tolist() == other.tokens.tolist()
        and sample.loss_mask.tolist() == other.loss_mask.tolist()
    )


def test_what_was_won_comes_back_with_the_ids_that_it_had(tokenizer, tmp_path):
    record, source, candidates, episodes = make_record(tokenizer, rewards=(1.0, 0.5, 0.0))
    found = read_episodes(write(tmp_path / "episodes", record), tokenizer, 0.5)
    expected = [source.samples[0]]
    expected += [episodes[key].samples[0] for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0))]
    expected += [candidates[0].sample, candidates[1].sample]
    assert len(found.sequences) == len(expected)
    for sequence, sample in zip(found.sequences, expected, strict=True):
        assert same(sequence.sample, sample) and sequence.task == "t0"
    assert [s.extraction for s in found.sequences] == [False] * 4 + [True] * 2
    assert (found.episodes, found.skills, found.unreadable) == (7, 3, 0)
    strict = read_episodes(tmp_path / "episodes", tokenizer, 1.0)
    assert sum(s.extraction for s in strict.sequences) == 1


def test_invalid_skills_and_lost_sources_teach_nothing(tokenizer, tmp_path):
    record, *_ = make_record(tokenizer, rewards=(1.0,), valid=(False,))
    record["source"]["won"] = False
    found = read_episodes(write(tmp_path / "episodes", record), tokenizer, 0.0)
    assert len(found.sequences) == 2 and not any(s.extraction for s in found.sequences)


def test_other_tokenizers_and_damaged_files_are_refused(tokenizer, tmp_path):
    record, *_ = make_record(tokenizer)
    folder = write(tmp_path / "episodes", record)
    with pytest.raises(ValueError, match="is one token there and none of"):
        other = ByteTokenizer()
        other.path = "another"
        read_episodes(folder, other, 0.5)
    with pytest.raises(
        FileNotFoundError, match=r"must hold \*.jsonl.gz of a run, RUN/episodes, found none"
    ):
        read_episodes(tmp_path, tokenizer, 0.5)
    (folder / "iteration_00001.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"iteration_00001.jsonl.gz must be an episode log"):
        read_episodes(folder, tokenizer, 0.5)


def test_a_sequence_that_ends_in_the_middle_of_a_character_is_left_out(tokenizer, tmp_path):
    record, *_ = make_record(tokenizer, rewards=(0.0,))
    record["source"]["sequences"][0]["pieces"][-1] = "\ufffd"
    found = read_episodes(write(tmp_path / "episodes", record), tokenizer, 0.5)
    assert found.unreadable == 1 and not found.sequences
