"""What an earlier run won, as sequences to learn from (rejection sampling): its ``episodes/*.jsonl.gz``.

A record keeps the text of every token, from which the ids come back: those of a tokenizer of bytes are
told apart by their text, and a character that several tokens share is encoded again.
"""

from __future__ import annotations

import functools
import gzip
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from evolving_rl_jax.types import SCORED, Sample

__all__ = ["PastEpisodes", "PastSequence", "episode_files", "read_episodes"]


class PastSequence(NamedTuple):
    """One sequence: of which task, and whether it trains an extraction."""

    sample: Sample
    task: str
    extraction: bool


class PastEpisodes(NamedTuple):
    """What was read: the sequences, and of how many episodes and skills they are those that count."""

    sequences: list[PastSequence]
    episodes: int
    skills: int
    unreadable: int  # sequences that end in the middle of a character


class _Cut(Exception):
    """A sequence with a character that is not whole."""


def episode_files(folder: str | pathlib.Path) -> list[pathlib.Path]:
    """The records in ``RUN/episodes``, in order; FileNotFoundError where there are none."""
    files = sorted(pathlib.Path(folder).glob("*.jsonl.gz"))
    if not files:
        raise FileNotFoundError(f"{folder} must hold *.jsonl.gz of a run, RUN/episodes, found none")
    return files


def read_episodes(folder: str | pathlib.Path, tokenizer, min_reward: float) -> PastEpisodes:
    """The won episodes of a run, and the extractions whose skills won.

    Args:
      folder: ``RUN/episodes``.
      tokenizer: of the policy, that of the run.
      min_reward: share of its episodes that an extraction's skill must have won.

    Raises:
      FileNotFoundError: there are no records.
      ValueError: a file is no such record, or of a policy with another tokenizer.
    """
    files = episode_files(folder)
    ids_of = _Ids(tokenizer)
    found: list[PastSequence] = []
    counts = {"episodes": 0, "skills": 0, "unreadable": 0}
    for file in files:
        try:
            lines = gzip.decompress(file.read_bytes()).decode("utf-8").splitlines()
            for line in lines:
                _add(json.loads(line), ids_of, min_reward, found, counts)
        except (OSError, EOFError, KeyError, TypeError, IndexError, ValueError) as error:
            raise ValueError(f"{file} must be an episode log that fits: {error}") from error
    return PastEpisodes(found, **counts)


def _add(record: dict[str, Any], ids_of: _Ids, min_reward: float, found: list, counts) -> None:
    source = record["source"]
    episodes = [e for skill in record["skills"] for e in skill["episodes"]]
    # Where a source was played several times, its episode is one of the attempts.
    sources = record.get("attempts") or ([source] if source else [])
    for episode in [*sources, *episodes]:
        counts["episodes"] += 1
        if episode["won"]:
            for sequence in episode["sequences"]:
                _append(found, counts, ids_of, sequence, episode["task"], False)
    for skill in record["skills"]:
        counts["skills"] += skill["valid"] is not None
        if skill["valid"] and _share_won(skill["episodes"]) >= min_reward:
            for sequence in skill["sequences"]:
                before = source["sequences"][0] if sequence["shared"] else None
                _append(found, counts, ids_of, sequence, source["task"], True, before)


def _share_won(episodes: list[dict[str, Any]]) -> float:
    """Of the episodes that counted; 0 without any.  Not the skill's reward: that may be on any scale."""
    won = [e["won"] for e in episodes if e["status"] in SCORED]
    return sum(won) / len(won) if won else 0.0


def _append(found, counts, ids_of, sequence, task: str, extraction: bool, before=None) -> None:
    try:
        ids, mask = ids_of(sequence["pieces"], sequence["mask"])
        if before is not None:  # what it shares with the source episode, which it does not train
            first, _ = ids_of(before["pieces"], before["mask"])
            ids, mask = first + ids, [0.0] * len(first) + mask
    except _Cut:
        counts["unreadable"] += 1
        return
    zeros = np.zeros(len(ids), np.float32)
    sample = Sample(
        np.asarray(ids, np.int32), np.asarray(mask, np.float32), zeros, zeros, sequence["turn"]
    )
    found.append(PastSequence(sample, task, extraction))


class _Ids:
    """Ids of the pieces of a record."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        # A special token wins over plain text that looks the same: that is never one token.
        self._known = {tokenizer.decode([i]): i for i in range(tokenizer.vocab_size)}
        self._known |= tokenizer.special_ids
        self._encode = functools.lru_cache(1 << 12)(lambda text: tuple(tokenizer.encode(text)))

    def __call__(self, pieces: Sequence[str], mask: str) -> tuple[list[int], list[float]]:
        ids, flags = [], []
        for text, taught, count in self._characters(pieces, mask):
            if "\ufffd" in text:
                raise _Cut
            one = self._known.get(text) if count == 1 else None
            new = [one] if one is not None else self._encode(text) if count > 1 else None
            if new is None:
                raise ValueError(
                    f"{text!r} is one token there and none of {self._tokenizer.path}: the policy must "
                    "have the tokenizer of that run"
                )
            ids += new
            flags += [float(taught == "1")] * len(new)
        return ids, flags

    def _characters(self, pieces: Sequence[str], mask: str) -> Iterator[tuple[str, str, int]]:
        """(text, mask, number of tokens) of each token, or of those that share a character."""
        count = 0
        for piece, flag in zip(pieces, mask, strict=True):
            count += 1
            if piece:
                yield piece, flag, count
                count = 0
