"""Episodes -> one TokenBatch of one of few shapes.

M is the worst case (every episode played, with as many sequences as it can have).  That of B, all of them
as long as the context, can be a thousand times what a batch needs: B is one of a few sizes up to it, see
`Batcher`.  The rows in use decide how many micro-batches the step runs; they come first on every device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from evolving_rl_jax.rollout.evolve import Experience
from evolving_rl_jax.rollout.extra import Extra, most_dealt
from evolving_rl_jax.rollout.step_credit import token_credit
from evolving_rl_jax.types import (
    ROLE_EXTRACTOR,
    ROLE_NONE,
    ROLE_SOLVER,
    ROLE_SOURCE,
    Sample,
    TokenBatch,
)

# Tokens below which a smaller B would save nothing: 25 MB of host arrays.
_LEAST_TOKENS = 1 << 20


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """The sizes of a TokenBatch: G, K, N, R of types.py, T = row_length.

    ``episode_samples`` is the most sequences of one episode, ``longest`` the most tokens of a sequence
    (0 = T).  With ``sampling_mask`` a batch has what an update needs to leave out what top-p and top-k
    left out.  ``sources`` are the source episodes of each task that are trained on.  ``shards`` is over
    how many devices of this host its rows are shared out, in blocks.  ``extra`` is the most sequences
    whose advantage is given; with any, a batch says whose are.  ``step_credit``: tokens have advantages of their
    own beside those of their sequences.
    """

    g: int
    k: int
    n: int
    r: int
    row_length: int
    micro_batch_rows: int
    episode_samples: int = 1
    longest: int = 0
    sampling_mask: bool = False
    shards: int = 1
    sources: int = 0
    extra: int = 0
    step_credit: bool = False

    @classmethod
    def from_config(cls, config) -> BatchShape:
        """The shape of one minibatch (one optimizer step)."""
        r, t = config.rollout, config.train
        return cls(
            r.num_sources // t.minibatches,
            r.num_retrieved,
            r.num_skills,
            r.num_repeats,
            t.row_length,
            t.micro_batch_rows,
            r.max_steps if r.context == "recent" else 1,
            r.max_length,
            config.algorithm.sampling_mask == "replay",
            sources=trained_sources(config),
            extra=_extra_sequences(config),
            step_credit=config.algorithm.step_credit.weight > 0,
        )

    @property
    def num_sequences(self) -> int:
        """M: every extraction, every sequence of an evaluation episode, of a trained source, and those
        beside them."""
        episodes = self.n * self.k * self.r + self.sources
        return self.g * (self.n + episodes * self.episode_samples) + self.extra

    @property
    def num_rows(self) -> int:
        """B.  First fit opens a row only when all others have less than ``longest`` left, so each of
        them holds at least T // longest sequences."""
        a_row = self.row_length // min(self.longest or self.row_length, self.row_length)
        return self._whole(-(-self.num_sequences // a_row))

    @property
    def row_buckets(self) -> tuple[int, ...]:
        """What B may be, ascending: doubled from a size that costs nothing up to `num_rows`."""
        sizes = [min(self._whole(-(-_LEAST_TOKENS // self.row_length)), self.num_rows)]
        while sizes[-1] < self.num_rows:
            sizes.append(min(2 * sizes[-1], self.num_rows))
        return tuple(sizes)

    def _whole(self, rows: int) -> int:
        return -(-rows // self.micro_batch_rows) * self.micro_batch_rows


def trained_sources(config) -> int:
    """Source episodes of each task that an update learns from; the arm ``grpo`` plays none."""
    r = config.rollout
    return r.num_source_episodes if r.train_sources and config.algorithm.arm != "grpo" else 0


def _extra_sequences(config) -> int:
    """Most sequences of a minibatch whose advantage is given: those of `replay`, and the plays beside."""
    r = config.rollout
    plays = config.guidance.free_repeats + config.guidance.repeats
    plays *= r.num_sources // config.train.minibatches * r.num_retrieved
    samples = r.max_steps if r.context == "recent" else 1
    return most_dealt(config.replay.sequences, config.train.minibatches, 1) + plays * samples


def split_experience(experience: Experience, parts: int) -> list[Experience]:
    """``parts`` equal shares of the sources, one for each optimizer step."""
    size = len(experience.sources) // parts
    cuts = [slice(i * size, (i + 1) * size) for i in range(parts)]
    arrays = experience.arrays()
    return [
        Experience(experience.sources[c], **{name: x[c] for name, x in arrays.items()})
        for c in cuts
    ]


class Batcher:
    """Makes the batches of an iteration, with no more rows than they need.

    B is one of ``shape.row_buckets`` and never shrinks, so a run compiles its update a few times at
    most; some room above what is needed makes it rarer still.

    Args:
      shape: of this host's part; B is then the same for all batches of an iteration.
      agree: a number -> the largest of all hosts; every one of them makes the same calls.

    Attributes:
      num_rows: B of the newest batches.
    """

    def __init__(self, shape: BatchShape, agree: Callable[[int], int] = int):
        self._shape, self._agree = shape, agree
        self.num_rows = shape.row_buckets[0]

    def __call__(
        self, shares: Sequence[Experience], extras: Sequence[Sequence[Extra]] = ()
    ) -> list[TokenBatch]:
        """A batch for each share of the sources and its extras, see `make_batch`."""
        extras = extras or [()] * len(shares)
        packed = [
            _pack(share, self._shape, more) for share, more in zip(shares, extras, strict=True)
        ]
        needed = self._agree(max(len(rows) for _, rows, *_ in packed))
        if needed > self.num_rows:
            wanted = min(needed + needed // 4, self._shape.num_rows)
            self.num_rows = next(n for n in self._shape.row_buckets if n >= wanted)
        return [
            _fill(share, self._shape, self.num_rows, *parts)
            for share, parts in zip(shares, packed, strict=True)
        ]


def make_batch(
    experience: Experience,
    shape: BatchShape,
    num_rows: int | None = None,
    extras: Sequence[Extra] = (),
) -> TokenBatch:
    """Packs the sequences of ``experience`` into rows; see ``types.TokenBatch`` for the fields.

    Args:
      experience: of one minibatch.
      shape: its sizes.
      num_rows: B, enough for what there is; by default the worst case.
      extras: at most ``shape.extra`` sequences beside those of the experience.
    """
    return _fill(experience, shape, num_rows or shape.num_rows, *_pack(experience, shape, extras))


def _pack(experience, shape, extras=()):
    """(samples, numbers of the samples of each row, the fields [M], the credit of each sample's turns)."""
    samples, fields, credits = _collect(experience, shape, extras)
    rows, _ = pack_rows([len(s.tokens) for s in samples], shape.row_length)
    return samples, rows, fields, credits


def _fill(experience, shape, num_rows, samples, rows, fields, credits) -> TokenBatch:
    filled = fill_rows(
        samples, rows, num_rows, shape.row_length,
        sampling_mask=shape.sampling_mask, shards=shape.shards,
        credits=credits if shape.step_credit else None,
    )  # fmt: skip
    return TokenBatch(
        **filled,
        **experience.arrays(),
        **fields,
        num_rows=np.int32(len(rows)),
    )


def _collect(experience: Experience, shape: BatchShape, extras: Sequence[Extra]):
    """The samples in use, the fields [M] (unused entries: ROLE_NONE), the credit of each sample's turns."""
    entries: list[tuple[Sample, int, int, Sequence[float]]] = []
    for g, source in enumerate(experience.sources):
        for n, candidate in enumerate(source.candidates):
            entries.append((candidate.sample, ROLE_EXTRACTOR, g * shape.n + n, ()))
        for (k, n, r), episode in sorted(source.episodes.items()):
            flat = ((g * shape.k + k) * shape.n + n) * shape.r + r
            if episode.scored:
                entries += [(s, ROLE_SOLVER, flat, episode.credit) for s in episode.samples]
        if experience.source_mask is not None:
            for i, episode in enumerate(source.attempts):
                if episode.scored:
                    flat = g * shape.sources + i
                    entries += [(s, ROLE_SOURCE, flat, episode.credit) for s in episode.samples]
    given = [np.nan] * len(entries) + [e.advantage for e in extras]
    detached = [False] * len(entries) + [e.detached for e in extras]
    entries += [(e.sample, e.role, 0, e.credit) for e in extras]
    # Each counts in the loss's divisor.
    kept = [i for i, entry in enumerate(entries) if entry[0].loss_mask.any()]
    entries = [entries[i] for i in kept]
    role = np.full(shape.num_sequences, ROLE_NONE, np.int32)
    index, step = np.zeros_like(role), np.zeros_like(role)
    longest = min(shape.longest or shape.row_length, shape.row_length)
    for m, (sample, kind, flat, _) in enumerate(entries):
        if len(sample.tokens) > longest:
            raise ValueError(
                f"config.train.row_length must be >= every sequence, got {shape.row_length} for "
                f"sequences up to {longest} and one of {len(sample.tokens)} tokens"
            )
        role[m], index[m], step[m] = kind, flat, sample.step
    fields = {"role": role, "index": index, "step": step}
    if shape.extra:
        fields |= {"given": np.full(len(role), np.nan, np.float32)}
        fields |= {"detached": np.zeros(len(role), np.float32)}
        fields["given"][: len(kept)] = [given[i] for i in kept]
        fields["detached"][: len(kept)] = [detached[i] for i in kept]
    return [e[0] for e in entries], fields, [e[3] for e in entries]


def fill_rows(
    samples: Sequence[Sample],
    rows: list[list[int]],
    num_rows: int,
    row_length: int,
    *,
    sampling_mask: bool = False,
    shards: int = 1,
    credits: Sequence[Sequence[float]] | None = None,
) -> dict[str, np.ndarray]:
    """The fields [B, T] of a TokenBatch.

    Args:
      samples: the sequences.
      rows: numbers of the sequences that lie in each row, see `pack_rows`.
      num_rows: B, a multiple of ``shards``; rows that are not used are padding.
      row_length: T.
      sampling_mask: with ``floor_logprobs``, and ``rollout_logprobs`` under what was sampled from.
      shards: blocks of equally many rows; they are dealt out, so that each block has as many
        of them, and has them first.
      credits: of each sequence, that of its episode's turns (`types.Episode.credit`); with ``step_credit``.

    Raises:
      ValueError: a sequence has no record of its floors.
    """
    shape = num_rows, row_length
    ints = {f: np.zeros(shape, np.int32) for f in ("tokens", "positions", "segment_ids")}
    ints["sequence_ids"] = np.full(shape, -1, np.int32)
    floats = {f: np.zeros(shape, np.float32) for f in ("loss_mask", "rollout_logprobs")}
    if credits is not None:
        floats["step_credit"] = np.zeros(shape, np.float32)
    if sampling_mask:
        floats["floor_logprobs"] = np.zeros(shape, np.float32)
        if any(s.floor_logprobs is None for s in samples):
            raise ValueError(
                "config.algorithm.sampling_mask 'replay' needs sequences with floor_logprobs, got some without"
            )
    for i, members in enumerate(rows):
        row, start = i % shards * (num_rows // shards) + i // shards, 0
        for segment, m in enumerate(members, start=1):
            s, end = samples[m], start + len(samples[m].tokens)
            ints["tokens"][row, start:end] = s.tokens
            ints["positions"][row, start:end] = np.arange(len(s.tokens))
            ints["segment_ids"][row, start:end] = segment
            ints["sequence_ids"][row, start:end] = m
            floats["loss_mask"][row, start:end] = s.loss_mask
            if credits is not None:
                floats["step_credit"][row, start:end] = token_credit(s, credits[m])
            if sampling_mask:
                floats["rollout_logprobs"][row, start:end] = s.sampling_logprobs
                floats["floor_logprobs"][row, start:end] = s.floor_logprobs
            else:
                floats["rollout_logprobs"][row, start:end] = s.logprobs
            start = end
    return ints | floats


def pack_rows(
    lengths: list[int], row_length: int, max_rows: int | None = None
) -> tuple[list[list[int]], list[int]]:
    """First-fit decreasing: (sequence numbers of each row, those that ``max_rows`` rows had no space for)."""
    rows: list[list[int]] = []
    space: list[int] = []
    left: list[int] = []
    for m in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        row = next((i for i, s in enumerate(space) if s >= lengths[m]), None)
        if row is None:
            if len(rows) == max_rows:
                left.append(m)
                continue
            rows.append([])
            space.append(row_length)
            row = len(rows) - 1
        rows[row].append(m)
        space[row] -= lengths[m]
    return rows, left
