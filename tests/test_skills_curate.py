"""Duplicates of a bank, found in blocks: the same as one record after the other."""

import dataclasses
import random

import numpy as np
import pytest

from evolving_rl_jax.skills import Bank, SkillRecord, TfidfEmbedder, curate
from evolving_rl_jax.skills.curate import best_first, duplicates, merge_banks
from evolving_rl_jax.skills.schema import render_skill


def test_duplicates_are_the_same_in_blocks_of_any_size(monkeypatch):
    """Against one record after the other, with equal texts and chains of alike ones."""
    rng = random.Random(4)
    words = ("mug", "egg", "pan", "shelf", "drawer", "heat")
    said = [" ".join(rng.choices(words, k=4)) for _ in range(150)]
    records = [
        SkillRecord(f"r{i:03d}", i, "s", "h", skill={"name": "s", "description": text})
        for i, text in enumerate(said)
    ]
    ranked = best_first(records)
    texts = [render_skill(r.as_skill()) for r in ranked]
    vectors = TfidfEmbedder().fit(texts).embed(texts).toarray()
    alike = np.round(vectors @ vectors.T, 9)
    kept, expected = [], {}
    for row, record in enumerate(ranked):
        best = max(kept, key=lambda k, row=row: (alike[row, k], -k), default=None)
        if best is not None and alike[row, best] >= 0.8:
            expected[record.id] = ranked[best].id
        else:
            kept.append(row)
    assert 10 < len(expected) < 140
    for size in (1, 7, 64, 1000):
        monkeypatch.setattr(curate, "_BLOCK", size)
        found = duplicates(records, TfidfEmbedder(), 0.8)
        assert {i: same for i, (same, _) in found.items()} == expected


@pytest.mark.parametrize("order", [1, -1])
def test_a_merge_keeps_what_was_measured_whichever_bank_comes_first(tmp_path, order):
    plain = SkillRecord("r", 0, "s", "h", skill={"name": "s", "description": "go"})
    measured = dataclasses.replace(plain, baseline_uses=6, lost=6)
    banks = [("a", Bank(tmp_path / "a.jsonl")), ("b", Bank(tmp_path / "b.jsonl"))]
    banks[0][1].append([plain])
    banks[1][1].append([measured])
    (record,) = merge_banks(tmp_path / "new.jsonl", banks[::order]).records
    assert (record.baseline_uses, record.lost) == (6, 6)
