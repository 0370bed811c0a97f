"""Duplicates of a bank, found in blocks: the same as one record after the other."""

import random

import numpy as np

from evolving_rl_jax.skills import SkillRecord, TfidfEmbedder, curate
from evolving_rl_jax.skills.curate import best_first, duplicates
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
