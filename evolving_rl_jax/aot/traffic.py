"""What a compiled program moves through memory and between devices.

XLA's own cost analysis counts the body of a loop once, whatever its trip count.  Here every
instruction is counted as often as the loops around it run.  A loop that may end early counts with
its limit (the tokens of a decode window), one whose trip count is a run-time value counts once (the
micro-batches of a step), so the result is per micro-batch.

An instruction reads its operands and writes its result, a fusion those of the whole fusion; of an
array that is only sliced the slices count, and of one that is updated in place the update.  Not
counted: what a Pallas kernel reads again, and the padding of tiles.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator

from evolving_rl_jax.aot.hlo import (
    VIEWS,
    Computation,
    Instruction,
    array_bytes,
    element_bytes,
    parse,
    trip_count,
)

# Instructions that move nothing themselves: views, bookkeeping, and what holds other computations.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all domain "
    "opt-barrier partition-id replica-id iota".split()
)
_SLICES = ("dynamic-slice", "slice", "gather")
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # which operand is written into the first one


@dataclasses.dataclass
class Traffic:
    """Bytes of one device.

    Attributes:
      hbm_bytes: read from and written to device memory.
      counts: {kind of collective: how many run}.
      sent_bytes: {kind: size of the whole array, twice for an all-reduce, which sends it twice}.
    """

    hbm_bytes: float = 0.0
    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    sent_bytes: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def add(self, other: Traffic, times: float) -> None:
        """Adds ``other``, ``times`` over."""
        self.hbm_bytes += times * other.hbm_bytes
        for mine, its in ((self.counts, other.counts), (self.sent_bytes, other.sent_bytes)):
            for kind, value in its.items():
                mine[kind] += times * value


def of_program(text: str) -> Traffic:
    """The `Traffic` of one run of the program whose optimised HLO is ``text``."""
    computations, entry = parse(text)
    return _traffic(computations, entry, {})


def _traffic(computations, name: str, known: dict[str, Traffic]) -> Traffic:
    """Of one run of a computation that is not fused."""
    if name in known:
        return known[name]
    total, computation = Traffic(), computations[name]
    seen: set[str] = set()
    for i in computation.instructions:
        total.hbm_bytes += _moved(i, computation, computations)
        fused = i.opcode not in _FREE
        for around, sender in _collectives(i, computation, computations, fused):
            # One that runs beside other work is in several fusions, each time with its channel.
            if sender.channel in seen:
                continue
            seen.add(sender.channel)
            total.counts[sender.collective] += 1
            total.sent_bytes[sender.collective] += _sent(sender, around)
            if sender is not i:
                total.hbm_bytes += array_bytes(sender.shape, memory_only=True)
        if fused:
            continue
        inner = [_traffic(computations, other, known) for other in i.called]
        if i.opcode == "conditional":  # one branch runs: the one that moves most bounds the time
            inner = [max(inner, key=lambda t: t.hbm_bytes + sum(t.sent_bytes.values()))]
        times = trip_count(i, computation, computations) if i.opcode == "while" else 1
        for part in inner:
            total.add(part, times)
    known[name] = total
    return total


def _collectives(
    i: Instruction, computation: Computation, computations, fused: bool
) -> Iterator[tuple[Computation, Instruction]]:
    """(computation, collective) for an instruction and what is fused into it."""
    if i.collective:
        yield computation, i
    for other in i.called if fused else ():
        for inner in computations[other].instructions:
            yield from _collectives(inner, computations[other], computations, fused)


def _sent(i: Instruction, computation: Computation) -> int:
    given = sum(array_bytes(computation.by_name[o].shape) for o in i.operands)
    result = array_bytes(i.shape)
    if i.opcode.endswith("-start") and i.shape.startswith("("):  # (operands, results, ...)
        result -= given
    return max(given, result) * (2 if i.collective == "all-reduce" else 1)


def _moved(i: Instruction, computation: Computation, computations) -> int:
    """Bytes of main memory that an instruction reads and writes."""
    if i.opcode in _FREE or i.opcode.endswith(("-done", "-update")) or i.is_marker:
        return 0
    read = [array_bytes(computation.by_name[o].shape, memory_only=True) for o in i.operands]
    if i.opcode == "fusion" or (i.opcode == "async-start" and i.called):
        inside = computations[i.called[0]]
        for n, size in enumerate(read):
            read[n] = min(size, _read(inside, inside.parameter(n), computations))
        written = _written(inside, inside.root, computations)
        if i.opcode == "fusion":  # what stays on the chip is not written to memory
            written = list(map(min, element_bytes(i.shape, True), written))
        return sum(read) + sum(written)
    kind = i.opcode.removesuffix("-start")
    result = array_bytes(i.shape, memory_only=True)
    if kind != i.opcode and i.shape.startswith("("):  # (operands, results, ...)
        result = max(0, result - sum(read))
    if kind in _SLICES:
        read[0] = min(read[0], _result_bytes(i))
        return sum(read) + result
    if kind in _UPDATES:
        update = read[_UPDATES[kind]]
        return sum(read[1:]) + min(update, result)
    return sum(read) + result


def _result_bytes(i: Instruction) -> int:
    """Bytes of what an instruction computes, wherever they are."""
    sizes = list(element_bytes(i.shape, False))
    return sizes[1] if i.opcode.endswith("-start") else sum(sizes)


def _read(inside: Computation, value: Instruction, computations, outer=()) -> int:
    """Bytes that a fusion reads of ``value``, one of its parameters or a view of it.

    Args:
      inside: the fused computation.
      value: one of its instructions.
      computations: all of the module.
      outer: where ``inside`` is fused into another one: ((that one, the fusion there), ...), the
        innermost last.
    """
    size, total = array_bytes(value.shape), 0
    if value is inside.root:
        total += _read(*outer[-1], computations, outer[:-1]) if outer else size
    for user in inside.users(value.name):
        for position in (n for n, o in enumerate(user.operands) if o == value.name):
            if user.opcode in _SLICES and position == 0:
                total += array_bytes(user.shape)
            elif user.opcode in _UPDATES and position == 0:
                continue  # in place: the rest of the buffer stays
            elif user.opcode == "tuple" or user.collective or user.is_marker:
                continue  # handed on; what a collective sends is counted apart
            elif user.opcode in VIEWS:
                total += _read(inside, user, computations, outer)
            elif user.opcode == "fusion":
                nested = computations[user.called[0]]
                parameter, around = nested.parameter(position), (*outer, (inside, user))
                total += _read(nested, parameter, computations, around)
            else:
                return size
    return min(size, total)


def _written(inside: Computation, root: Instruction, computations) -> list[int]:
    """Bytes that a fusion writes for each of its results: of a buffer updated in place, the update."""
    if root.opcode != "tuple":
        return _written_one(inside, root, computations)
    parts = [inside.by_name[o] for o in root.operands]
    # A parameter among the results is the buffer of another one, handed on.
    return [
        0 if p.opcode == "parameter" else sum(_written_one(inside, p, computations)) for p in parts
    ]


def _written_one(inside: Computation, result: Instruction, computations) -> list[int]:
    sizes = list(element_bytes(result.shape, False))
    source = inside.source(result.name)
    if source.collective or source.is_marker:
        return [0] * len(sizes)  # counted apart
    if source.opcode == "fusion":
        nested = computations[source.called[0]]
        return list(map(min, sizes, _written(nested, nested.root, computations)))
    if source.opcode in _UPDATES and inside.source(source.operands[0]).opcode == "parameter":
        update = inside.by_name[source.operands[_UPDATES[source.opcode]]]
        return [min(sizes[0], array_bytes(update.shape))]
    return sizes
