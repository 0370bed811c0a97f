"""What a compiled program moves through memory and between devices, read from its HLO text.

XLA's own cost analysis counts the body of a loop once, whatever its trip count.  Here every
instruction is counted as often as the loops around it run.  A loop that may end early counts with
its limit (the tokens of a decode window), one whose trip count is a run-time value counts once (the
micro-batches of a step), so the result is per micro-batch.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import re

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
_BITS = re.compile(r"\D*(\d+)")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(
    r"\b(?:calls|body|branch_computations|called_computations)=(\{[^}]*\}|[^,\s]+)"
)
_NAME = re.compile(r"%([\w.\-]+)")
# Instructions that move nothing themselves: views, bookkeeping, and what holds other computations.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call after-all domain "
    "opt-barrier partition-id replica-id iota".split()
)
_SLICES = ("dynamic-slice", "slice", "gather")
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # which operand is written into the first one


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO as texts: name, shape, operation, what is in its parenthesis, the rest."""

    name: str
    shape: str
    opcode: str
    arguments: str
    attributes: str

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of the operands."""
        return tuple(_NAME.findall(self.arguments))

    @property
    def number(self) -> int:
        """N of ``parameter(N)`` and ``constant(N)``."""
        return int(re.search(r"\d+", self.arguments)[0])


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


def array_bytes(shape: str, *, memory_only: bool = False) -> int:
    """Bytes of all arrays in the text of a shape, without those outside the main memory if asked.

    A TPU layout with ``S(n)``, n > 0, is in the small memory on the chip, or a semaphore.
    """
    total = 0
    for kind, sizes, layout in _ARRAY.findall(shape):
        if memory_only and re.search(r"S\([1-9]", layout):
            continue
        bits = 8 if kind == "pred" else int(m[1]) if (m := _BITS.match(kind)) else 0
        total += math.prod(int(n) for n in sizes.split(",") if n) * bits // 8
    return total


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """{name of a computation: its instructions}, and the name of the one that runs."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", []
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif found := _INSTRUCTION.match(line):
            current.append(_instruction(found[1], found[2]))
    if not entry:
        raise ValueError("HLO text must have an ENTRY computation, found none")
    return computations, entry


def _instruction(name: str, rest: str) -> Instruction:
    shape, rest = _split(rest) if rest.startswith("(") else rest.split(" ", 1)
    opcode, bracket, rest = rest.strip().partition("(")
    operands, attributes = _split(bracket + rest)
    return Instruction(name, shape, opcode, operands, attributes)


def _split(text: str) -> tuple[str, str]:
    """The parenthesis that ``text`` begins with, and what follows it."""
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if not depth:
            return text[: i + 1], text[i + 1 :]
    return text, ""


def traffic(text: str) -> Traffic:
    """The `Traffic` of one run of the program whose optimised HLO is ``text``."""
    computations, entry = parse(text)
    total = Traffic()
    _add(total, computations, entry, 1, fused=False)
    return total


def _add(total: Traffic, computations, name: str, times: float, *, fused: bool) -> None:
    instructions = computations.get(name, [])
    shapes = {i.name: i.shape for i in instructions}
    for i in instructions:
        kind = i.opcode.removesuffix("-start")
        if kind in COLLECTIVES and not i.opcode.endswith("-done"):
            total.counts[kind] += times
            total.sent_bytes[kind] += times * _sent(i, kind, shapes)
        if not fused:
            total.hbm_bytes += times * _moved(i, shapes, computations)
        inner = times * (trip_count(i, computations) if i.opcode == "while" else 1)
        for called in _CALLED.findall(i.attributes):
            for other in _NAME.findall(called):
                _add(total, computations, other, inner, fused=fused or i.opcode == "fusion")


def _sent(i: Instruction, kind: str, shapes) -> int:
    given = sum(array_bytes(shapes.get(o, "")) for o in i.operands)
    result = array_bytes(i.shape) - (given if i.opcode.endswith("-start") else 0)
    return max(given, result) * (2 if kind == "all-reduce" else 1)


def trip_count(loop: Instruction, computations) -> int:
    """How often a while instruction runs its body; 1 where only the run decides."""
    known = re.search(r"known_trip_count[^\d]*(\d+)", loop.attributes)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
    instructions = {i.name: i for i in computations.get(condition[1] if condition else "", [])}
    for i in instructions.values():
        if i.opcode == "compare" and "direction=LT" in i.attributes:
            limit = instructions.get(i.operands[1])
            if limit is not None and limit.opcode == "constant":
                return limit.number
    return 1


def _moved(i: Instruction, shapes, computations) -> int:
    """Bytes of main memory that an instruction reads and writes; of slices only what is touched."""
    if i.opcode in _FREE or i.opcode.endswith("-done"):
        return 0

    def size(shape):
        return array_bytes(shape, memory_only=True)

    if i.opcode in _SLICES:
        return 2 * size(i.shape)
    if i.opcode in _UPDATES:
        return 2 * size(shapes.get(i.operands[_UPDATES[i.opcode]], ""))
    read = [size(shapes.get(o, "")) for o in i.operands]
    if i.opcode != "fusion":
        return sum(read) + (0 if i.opcode.endswith("-start") else size(i.shape))
    body = computations.get(_NAME.findall(_CALLED.findall(i.attributes)[0])[0], [])
    inside = {j.name: j for j in body}
    parameters = [j for j in body if j.opcode == "parameter"]
    parameters.sort(key=lambda j: j.number)
    written = size(i.shape)
    for n, p in enumerate(parameters[: len(read)]):
        users = [j for j in body if p.name in j.operands]
        if users and all(j.opcode in _SLICES and j.operands[0] == p.name for j in users):
            read[n] = min(read[n], sum(array_bytes(j.shape) for j in users))
        updates = [j for j in users if j.opcode in _UPDATES and j.operands[0] == p.name]
        if updates and len(users) == len(updates):  # in place: the rest of the buffer stays
            changes = [inside[j.operands[_UPDATES[j.opcode]]] for j in updates]
            touched = sum(array_bytes(j.shape) for j in changes)
            written -= max(0, read[n] - touched)
            read[n] = 0
    return sum(read) + max(0, written)
