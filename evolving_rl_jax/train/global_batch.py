"""Which sources a host plays, and how the parts of the hosts become one batch and one record.

The sources of an iteration have numbers 0 .. G-1 whatever the number of hosts, and everything that
is sampled is keyed by them.  Each minibatch is shared out evenly, in blocks, so that an update sees
the same sources on one host and on many.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from evolving_rl_jax import parallel
from evolving_rl_jax.rollout.batch import BatchShape
from evolving_rl_jax.rollout.evolve import Experience, Source
from evolving_rl_jax.rollout.extra import most_dealt
from evolving_rl_jax.run.hosts import Hosts
from evolving_rl_jax.types import (
    ROLE_EXTRACTOR,
    ROLE_SOLVER,
    ROLE_SOURCE,
    ROW_FIELDS,
    Sample,
    TokenBatch,
)


def source_numbers(num_sources: int, minibatches: int, hosts: Hosts) -> list[int]:
    """The numbers of this host's sources, those of the first minibatch first."""
    size = num_sources // minibatches
    own = size // hosts.count
    starts = [m * size + hosts.index * own for m in range(minibatches)]
    return [g for start in starts for g in range(start, start + own)]


def host_shape(shape: BatchShape, hosts: Hosts, mesh: Mesh | None = None) -> BatchShape:
    """The sizes of one host's part of a batch; ``mesh`` is that of the update."""
    shards = math.prod(mesh.shape[a] for a in parallel.ROWS) if mesh else 1
    return dataclasses.replace(
        shape,
        g=shape.g // hosts.count,
        micro_batch_rows=max(1, shape.micro_batch_rows // hosts.count),
        shards=max(1, shards // hosts.count),
        extra=most_dealt(shape.extra, 1, hosts.count),
    )


def global_batch(batch: TokenBatch, shape: BatchShape, hosts: Hosts, mesh: Mesh) -> TokenBatch:
    """This host's part of a batch -> the batch of all hosts, laid out on the mesh.

    Rows stay on the host that brought them.  The small arrays, which every device needs whole, are
    exchanged; numbers of sequences and indices become those of the whole batch.

    Args:
      batch: of this host, numpy.
      shape: of every host's part, see `host_shape`.
      hosts: every one must call this at the same time.
      mesh: the device mesh.
    """
    fields = batch._asdict()
    parts = hosts.gather({name: fields[name] for name in _SMALL})
    ids = np.asarray(batch.sequence_ids)
    shifted = np.where(ids >= 0, ids + hosts.index * shape.num_sequences, ids).astype(np.int32)
    whole = batch._replace(sequence_ids=shifted, **_merge(parts, shape))
    return parallel.host_local_to_global(whole, mesh)


# All but the rows [B, T].
_SMALL = tuple(name for name in TokenBatch._fields if name not in ROW_FIELDS)


def _merge(parts: list[dict[str, np.ndarray]], shape: BatchShape) -> dict[str, np.ndarray]:
    """The small fields of the whole batch: those of the hosts one after the other."""
    whole = {name: [part[name] for part in parts] for name in _SMALL}
    episodes, skills = shape.g * shape.k * shape.n * shape.r, shape.g * shape.n
    for i, part in enumerate(parts):
        shift = np.where(part["role"] == ROLE_SOLVER, episodes, 0)
        shift = np.where(part["role"] == ROLE_EXTRACTOR, skills, shift)
        shift = np.where(part["role"] == ROLE_SOURCE, shape.g * shape.sources, shift)
        whole["index"][i] = (part["index"] + i * shift).astype(np.int32)
    num_rows = np.int32(sum(int(n) for n in whole.pop("num_rows")))
    joined = {
        name: None if values[0] is None else np.concatenate(values)
        for name, values in whole.items()
    }
    return joined | {"num_rows": num_rows}


# Figures of a host's rollout that are no counts.
_SHARES = ("rollout/cache_used", "rollout/policy_lag")
_TIMES = ("rollout/overlapped_seconds",)


def whole_counts(figures: dict[str, float], hosts: Hosts) -> dict[str, float]:
    """Figures of one host -> of the run: counts of rollouts added up, shares averaged.

    Times stay those of this host.
    """
    if hosts.count == 1:
        return figures
    counted = [n for n in figures if n.startswith(("rollout/", "env/")) and n not in _TIMES]
    counts = {n: figures[n] for n in counted}
    everyone = hosts.gather(counts)
    # A host that extracted nothing has no counts of what was extracted.
    for name in dict.fromkeys(name for part in everyone for name in part):
        total = sum(part.get(name, 0) for part in everyone)
        figures[name] = total / hosts.count if name in _SHARES else total
    return figures


def whole_experience(
    experience: Experience, numbers: Sequence[int], hosts: Hosts, *, whole_sources: int
) -> Experience:
    """The experience of all hosts in the order of the sources' numbers, for records and metrics.

    Of tokens only the trained ones' mask travels, except for the first ``whole_sources`` sources,
    which are written down with all they have.
    """
    if hosts.count == 1:
        return experience
    sent = [
        (g, s if g < whole_sources else _without_tokens(s))
        for g, s in zip(numbers, experience.sources, strict=True)
    ]
    everyone = hosts.gather((sent, experience.arrays()))
    order = np.argsort([g for part, _ in everyone for g, _ in part])
    sources = [s for part, _ in everyone for _, s in part]
    whole = {n: np.concatenate([x[n] for _, x in everyone])[order] for n in experience.arrays()}
    return Experience([sources[i] for i in order], **whole)


def _without_tokens(source: Source) -> Source:
    def episode(e):
        lengths = [_lengths_only(s) for s in e.samples]
        return dataclasses.replace(e, samples=lengths, without_skill=[])

    return dataclasses.replace(
        source,
        episode=episode(source.episode) if source.episode else None,
        candidates=[
            dataclasses.replace(c, sample=_lengths_only(c.sample)) for c in source.candidates
        ],
        episodes={key: episode(e) for key, e in source.episodes.items()},
        attempts=[episode(e) for e in source.attempts],
        beside={key: episode(e) for key, e in source.beside.items()},
    )


def _lengths_only(sample: Sample) -> Sample:
    """The sampled positions alone, with nothing but their mask: enough to count them."""
    mask = sample.loss_mask[sample.loss_mask > 0]
    empty = np.zeros(0, np.int32)
    return dataclasses.replace(
        sample, tokens=empty, loss_mask=mask, logprobs=empty, sampling_logprobs=empty,
        floor_logprobs=None,
    )  # fmt: skip
