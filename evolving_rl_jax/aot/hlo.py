"""Compiled programs as data: the instructions of each computation, read from optimised HLO text."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

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
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(
    r"\b(calls|body|to_apply|branch_computations|called_computations|true_computation"
    r"|false_computation)=(\{[^}]*\}|[^,\s]+)"
)
_NAME = re.compile(r"%([\w.\-]+)")
VIEWS = ("bitcast", "reshape", "transpose", "copy")  # inside a fusion they move nothing either
# Calls that only mark a buffer, or the beginning and end of a collective that runs inside fusions.
_MARKERS = re.compile(
    r'custom_call_target="(AllocateBuffer|ConcatBitcast|AsyncCollective(Start|Done))"'
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO as texts: name, shape, operation, what is in its parenthesis, the rest; and
    whether its value is the result of its computation."""

    name: str
    shape: str
    opcode: str
    arguments: str
    attributes: str
    is_root: bool = False

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of the operands."""
        return tuple(_NAME.findall(self.arguments))

    @property
    def number(self) -> int:
        """N of ``parameter(N)`` and ``constant(N)``."""
        return int(re.search(r"-?\d+", self.arguments)[0])

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it runs, without the scalar ones of a reduction."""
        return tuple(
            name
            for kind, names in _CALLED.findall(self.attributes)
            if kind != "to_apply" or self.opcode == "call"
            for name in _NAME.findall(names)
        )

    @property
    def collective(self) -> str | None:
        """Its kind, one of `COLLECTIVES`, when it sends something."""
        kind = self.opcode.removesuffix("-start")
        return kind if kind in COLLECTIVES else None

    @property
    def channel(self) -> str:
        """What tells a collective from others: its channel, else its name."""
        found = re.search(r"channel_id=\d+", self.attributes)
        return found[0] if found else self.name

    @property
    def is_marker(self) -> bool:
        """Whether it is a call that moves nothing."""
        return self.opcode == "custom-call" and bool(_MARKERS.search(self.attributes))


class Computation:
    """The instructions of one computation.

    Attributes:
      instructions: in order.
      by_name: {name: instruction}.
      root: the one whose value is the result.
    """

    def __init__(self, instructions: list[Instruction]):
        self.instructions = instructions
        self.by_name = {i.name: i for i in instructions}
        self.root = next((i for i in instructions if i.is_root), instructions[-1])
        self._users: dict[str, list[Instruction]] = {}
        for i in instructions:
            for name in set(i.operands):
                self._users.setdefault(name, []).append(i)

    def parameter(self, number: int) -> Instruction:
        """``parameter(number)``."""
        found = (i for i in self.instructions if i.opcode == "parameter" and i.number == number)
        return next(found)

    def users(self, name: str) -> list[Instruction]:
        """What has the value of ``name`` as an operand."""
        return self._users.get(name, [])

    def source(self, name: str) -> Instruction:
        """The instruction that ``name`` is a view of."""
        found = self.by_name[name]
        while found.opcode in VIEWS:
            found = self.by_name[found.operands[0]]
        return found


def array_bytes(shape: str, *, memory_only: bool = False) -> int:
    """Bytes of all arrays in the text of a shape, without those outside the main memory if asked.

    A TPU layout with ``S(n)``, n > 0, is in the small memory on the chip, or a semaphore.
    """
    return sum(element_bytes(shape, memory_only))


def element_bytes(shape: str, memory_only: bool) -> Iterator[int]:
    """`array_bytes` of each array."""
    for kind, sizes, layout in _ARRAY.findall(shape):
        if memory_only and re.search(r"S\([1-9]", layout):
            yield 0
            continue
        bits = 8 if kind == "pred" else int(m[1]) if (m := _BITS.match(kind)) else 0
        yield math.prod(int(n) for n in sizes.split(",") if n) * bits // 8


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """{name of a computation: it}, and the name of the one that runs.

    Raises:
      ValueError: ``text`` is not that of a module.
    """
    found: dict[str, list[Instruction]] = {}
    entry, current = "", []
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = found.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line := _INSTRUCTION.match(line):
            current.append(_instruction(line[2], line[3], bool(line[1])))
    if not entry:
        raise ValueError("HLO text must have an ENTRY computation, found none")
    return {name: Computation(lines) for name, lines in found.items() if lines}, entry


def _instruction(name: str, rest: str, is_root: bool) -> Instruction:
    shape, rest = _split(rest) if rest.startswith("(") else rest.split(" ", 1)
    opcode, bracket, rest = rest.strip().partition("(")
    operands, attributes = _split(bracket + rest)
    return Instruction(name, shape, opcode, operands, attributes, is_root)


def _split(text: str) -> tuple[str, str]:
    """The parenthesis that ``text`` begins with, and what follows it."""
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if not depth:
            return text[: i + 1], text[i + 1 :]
    return text, ""


def trip_count(loop: Instruction, around: Computation, computations) -> int:
    """How often a while instruction, one of ``around``, runs its body; 1 if only the run decides.

    Read from ``counter < limit`` in its condition, what the body adds to the counter, and the
    counter's first value.
    """
    known = re.search(r"known_trip_count[^\d]*(\d+)", loop.attributes)
    if known:
        return int(known[1])
    condition = computations[_NAME.findall(re.search(r"condition=(\S+)", loop.attributes)[1])[0]]
    for test, (counter, limit) in _comparisons(condition, computations):
        is_counter = counter.opcode == "get-tuple-element" and counter.shape[0] in "su"
        if "direction=LT" in test.attributes and is_counter and limit.opcode == "constant":
            index = _tuple_index(counter)
            first = _constant(around, around.by_name[loop.operands[0]], index)
            step = _step(computations[loop.called[0]], index)
            return max(0, -(-(limit.number - (first or 0)) // step))
    return 1


def _comparisons(condition: Computation, computations):
    """(compare instruction, the two that it compares) of a condition, fused ones included."""
    for i in condition.instructions:
        if i.opcode == "compare":
            yield i, [condition.source(o) for o in i.operands]
        elif i.opcode == "fusion":
            inside = computations[i.called[0]]
            for test in (j for j in inside.instructions if j.opcode == "compare"):
                parts = [inside.source(o) for o in test.operands]
                yield (
                    test,
                    [
                        condition.source(i.operands[p.number]) if p.opcode == "parameter" else p
                        for p in parts
                    ],
                )


def _tuple_index(i: Instruction) -> int:
    return int(re.search(r"\bindex=(\d+)", i.attributes)[1])


def _constant(computation: Computation, start: Instruction, index: int) -> int | None:
    """Element ``index`` of a tuple where it is a constant of the computation."""
    if start.opcode != "tuple":
        return None
    found = computation.source(start.operands[index])
    return found.number if found.opcode == "constant" else None


def _step(body: Computation, index: int) -> int:
    """What the body adds to element ``index`` of its state; 1 where that is not a constant."""
    added, total = body.source(body.root.operands[index]), 0
    while added.opcode == "add":
        parts = [body.source(o) for o in added.operands]
        numbers = [p.number for p in parts if p.opcode == "constant"]
        if len(numbers) != 1:
            return 1
        total += numbers[0]
        added = next(p for p in parts if p.opcode != "constant")
    return max(1, total)
