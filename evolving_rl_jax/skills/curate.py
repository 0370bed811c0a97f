"""Keeping a bank small and good: duplicates, skills that do not help, and banks put together."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable

import numpy as np

from evolving_rl_jax.skills.bank import Bank
from evolving_rl_jax.skills.embedders import TIE_DECIMALS, Embedder, cosine
from evolving_rl_jax.skills.records import SkillRecord
from evolving_rl_jax.skills.schema import render_skill

_BLOCK = 256  # records compared in one product


def worth(record: SkillRecord) -> tuple[float, float, float, int]:
    """What orders records, best last: measured utility, then the score gained, then reward, then the
    newer one.

    A skill that was never measured stands between those that help and those that harm.
    """
    reward = -1.0 if record.reward is None else record.reward
    return (record.utility or 0.0, record.mean_score_gained or 0.0, reward, record.iteration)


def best_first(records: Iterable[SkillRecord]) -> list[SkillRecord]:
    """The usable records in the order of ``worth``, the best first, ties by id."""
    ranked = sorted((record for record in records if record.usable), key=lambda record: record.id)
    return sorted(ranked, key=worth, reverse=True)


def duplicates(
    records: Iterable[SkillRecord], embedder: Embedder, threshold: float
) -> dict[str, tuple[str, float]]:
    """Usable records that say what a better one says: id -> (id of that one, cosine).

    The best record is kept first; another one is its duplicate when the cosine of their rendered
    texts reaches ``threshold``.  What is kept has no two records that alike.

    Raises:
      ValueError: the threshold is not in (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], got {threshold}")
    ranked = best_first(records)
    if not ranked:
        return {}
    texts = [render_skill(record.as_skill()) for record in ranked]
    embedder.fit(texts)
    vectors = embedder.embed(texts)
    kept: list[int] = []
    found: dict[str, tuple[str, float]] = {}
    for start in range(0, len(ranked), _BLOCK):
        rows = list(range(start, min(start + _BLOCK, len(ranked))))
        others = [*kept, *rows]  # the block's own columns come into play as they are kept
        scores = np.round(cosine(vectors[rows], vectors[others]), TIE_DECIMALS)
        is_kept = np.arange(len(others)) < len(kept)
        for i, row in enumerate(rows):
            likeness = np.where(is_kept, scores[i], -np.inf)
            best = int(np.argmax(likeness))
            if likeness[best] >= threshold:
                found[ranked[row].id] = ranked[others[best]].id, float(likeness[best])
            else:
                is_kept[len(kept) + i] = True
        kept = [other for other, stays in zip(others, is_kept, strict=True) if stays]
    return found


def retire_duplicates(bank: Bank, embedder: Embedder, threshold: float) -> list[SkillRecord]:
    """Retires ``duplicates`` of the bank, with the reason; returns the retired records."""
    found = duplicates(bank.records, embedder, threshold)
    return bank.revise_all(
        dataclasses.replace(bank[i], retired=f"duplicate of {kept} (cosine {score:.3f})")
        for i, (kept, score) in found.items()
    )


def retire_harmful(
    bank: Bank, *, min_pairs: int = 8, min_utility: float = 0.0
) -> list[SkillRecord]:
    """Retires skills whose whole utility interval lies below ``min_utility``.

    Args:
      bank: with measured records.
      min_pairs: fewer paired episodes decide nothing.
      min_utility: least worth, a difference of success rates.

    Returns:
      The retired records.
    """
    retired = []
    for record in bank.records:
        interval = record.utility_interval
        if not record.usable or interval is None or record.baseline_uses < min_pairs:
            continue
        if interval[1] < min_utility:
            reason = (
                f"utility {record.utility:+.3f} [{interval[0]:+.3f}, {interval[1]:+.3f}] over "
                f"{record.baseline_uses} pairs is below {min_utility:+g}"
            )
            retired.append(dataclasses.replace(record, retired=reason))
    return bank.revise_all(retired)


def merge_banks(out: str | os.PathLike[str], banks: Iterable[tuple[str, Bank]]) -> Bank:
    """Writes the newest records of several banks into a new one.

    Args:
      out: file of the new bank.
      banks: (name, bank) pairs.  A record that two banks have is kept once; when one id means two
        different records, the later one is kept as ``NAME:ID``.

    Raises:
      ValueError: ``out`` holds records already, or a name is used twice and needed.
    """
    merged = Bank(out)
    if len(merged):
        raise ValueError(f"{merged.path} must be a new bank, got one with {len(merged)} records")
    records: dict[str, SkillRecord] = {}
    for name, bank in banks:
        for record in bank.records:
            same = records.get(record.id)
            if same is not None and _content(same) == _content(record):
                # Banks that are written with their measurements begin again at version 0.
                records[record.id] = max(same, record, key=lambda r: (r.version, r.baseline_uses))
                continue
            new_id = record.id if same is None else f"{name}:{record.id}"
            if new_id in records:
                raise ValueError(f"names of banks to merge must differ, got {name!r} twice")
            records[new_id] = dataclasses.replace(record, id=new_id)
    merged.append(dataclasses.replace(r, version=0) for r in records.values())
    return merged


def _content(record: SkillRecord) -> tuple:
    """What does not change when a record is measured again."""
    return record.skill, record.source_task_hash, record.episode_id, record.policy_step
