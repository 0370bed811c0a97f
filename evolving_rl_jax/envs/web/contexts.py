"""What tells nodes of equal role and name apart: the words of the row, card or region that each is in.

A node's context is the beginning of the text of the smallest ancestor that holds only this one of the equal
nodes and says something else than the name, or the name of that ancestor where it has one (a landmark always
does).  The beginning is as long as it must be to differ.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

from evolving_rl_jax.envs.web.labels import cut
from evolving_rl_jax.envs.web.markup import Node, attribute_text
from evolving_rl_jax.envs.web.roles import landmark

__all__ = ["CONTEXT_CHARS", "contexts"]

CONTEXT_CHARS = 60
_LEVELS, _ROUNDS, _LEAST_WORDS = 12, 4, 2


def contexts(
    nodes: Sequence[Node], names: Sequence[tuple[str, str]], label_of: Callable[[Node], str]
) -> list[str]:
    """The context of each node, empty where its role and name are its own.

    Args:
      nodes: in the order of the document.
      names: role and label of each.
      label_of: the label of any node of the page.
    """
    groups = defaultdict(list)
    for i, name in enumerate(names):
        groups[name].append(i)
    found = [""] * len(nodes)
    for (role, label), members in groups.items():
        if len(members) == 1:
            continue
        if role == "option":
            for i in members:
                found[i] = cut(label_of(nodes[i].select or nodes[i]), CONTEXT_CHARS)
        else:
            _tell_apart(nodes, members, label, found)
    return found


def _tell_apart(nodes, members: list[int], label: str, found: list[str]) -> None:
    outer, holder, end = [], {}, -1
    for i in members:  # one in another of its kind is where that is
        if nodes[i].position >= end:
            outer.append(i)
            end = nodes[i].end
        holder[i] = outer[-1]
    if len(outer) == 1:
        return
    positions = [nodes[i].position for i in outer]
    ways = {i: _ways(nodes[i], label, positions) for i in outer}
    texts, waiting = dict.fromkeys(outer, ("", True)), outer
    for _ in range(_ROUNDS):
        for i in waiting:
            texts[i] = next(ways[i], texts[i])
        times = Counter(text for text, _ in texts.values())
        waiting = [i for i in outer if times[texts[i][0]] > 1]
        if not waiting:
            break
    short = _beginnings([text for text, _ in texts.values()])
    for i in members:
        text, is_name = texts[holder[i]]
        found[i] = cut(text if is_name else short[text], CONTEXT_CHARS)


def _beginnings(texts: Sequence[str]) -> dict[str, str]:
    """Text -> as many of its first words as tell it from the others, at least ``_LEAST_WORDS``."""
    ordered = [text.split() for text in sorted(set(texts))]
    shared = [_shared(a, b) for a, b in itertools.pairwise(ordered)]
    return {
        " ".join(words): " ".join(words[: max(_LEAST_WORDS, 1 + max(before, after))])
        for words, before, after in zip(ordered, [0, *shared], [*shared, 0], strict=True)
    }


def _shared(a: Sequence[str], b: Sequence[str]) -> int:
    """How many first words two texts have in common."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def _ways(node: Node, label: str, positions: list[int]) -> Iterator[tuple[str, bool]]:
    """Contexts of a node, nearest first; whether each is a name, to be taken whole."""
    above, last, alone = node.parent, "", True
    for _ in range(_LEVELS):
        if above is None or above.position < 0:
            return
        first = bisect_left(positions, above.position)
        alone = alone and bisect_left(positions, above.end) - first == 1
        text = attribute_text(above.attributes)
        if not text or text == label:
            text = landmark(above.tag, above.attributes)
        is_name = bool(text)
        if not text and alone:
            text = _without(above.text or above.names, label)
        if text and text not in (last, label):
            last = text
            yield text, is_name
        above = above.parent


def _without(text: str, label: str) -> str:
    """The text without the name."""
    label = label.removesuffix("...")
    rest = text.replace(label, " ", 1) if label else text
    return " ".join(rest.split()).strip(" ,;:|-")
