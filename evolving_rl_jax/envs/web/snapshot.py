"""The page as the agent reads it: one line an element, within a budget of tokens.

A page that fits is shown whole.  Of a larger one the most relevant elements are shown, in the order of
the page.  Relevance knows the page, the task and the earlier actions, never the gold action:

    cosine(task, element) + 0.5 cosine(last three actions, element) - 0.1 if it only wraps others

with TF-IDF over the page's elements (character 3- and 4-grams within words, so that "flights" finds
"flight"; a cosine below 0.1 counts as 0).  Of earlier actions the labels and values count, not the operations.  Neighbours of one name (a
control and its text, a text and what wraps it) are taken together among the 16 best, after that the control or
text first and what has its name at the end; a control comes with the text before it.
Among equally relevant ones roles take turns, new labels come before repeated ones, and both evenly over the
page, so that the menus of its header do not crowd out the rest.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from evolving_rl_jax.envs.web.page import CONTROL, TEXT, WRAPPER, Element, Page
from evolving_rl_jax.envs.web.token_count import count_tokens

__all__ = ["Snapshot", "count_tokens", "element_line", "ranking", "shown_options", "snapshot"]

SHOWN_OPTIONS = 12
HISTORY_WEIGHT, WRAPPER_WEIGHT, LEAST_COSINE, RECENT_ACTIONS = 0.5, 0.1, 0.1, 3
WHOLE_UNITS = 16  # best units that are taken with all their elements
_BESIDE = 3  # how many elements before a control its text may be
_WORD = re.compile(r"\w+")
_STEM = 5  # letters of a word that are compared


class Snapshot(NamedTuple):
    """What is shown of a page.

    Attributes:
      text: one line an element; a last line says how many are left out.
      shown: positions of the shown elements on the page.
    """

    text: str
    shown: frozenset[int]


def element_line(element: Element, number: int, task: str = "") -> str:
    """``combobox "Size" (mug) [ref=e3] = "M" of S | M | L``; of a long list what is near the task."""
    line = f"{element.name} [ref=e{number}]"
    if element.value:
        line += f' = "{element.value}"'
    if element.options:
        shown = shown_options(element, task)
        more = " | ..." if len(element.options) > len(shown) else ""
        line += f" of {' | '.join(shown)}{more}"
    return line


def shown_options(element: Element, task: str) -> tuple[str, ...]:
    """Of a list all options, or the 12 that share most words with the task, with the selected one.

    >>> shown_options(Element("1", "combobox", "", options=tuple(map(str, range(40)))), "seat 33")[-1]
    '33'
    """
    options = element.options
    if len(options) <= SHOWN_OPTIONS:
        return options
    wanted = _stems(task)
    score = {}
    for i, option in enumerate(options):
        stems = _stems(option)
        score[i] = len(stems & wanted) / max(1, len(stems)) + 2 * (option == element.value)
    best = sorted(score, key=lambda i: (-score[i], i))[:SHOWN_OPTIONS]
    return tuple(options[i] for i in sorted(best))


def _stems(text: str) -> set[str]:
    return {word[:_STEM] for word in _WORD.findall(text.lower())}


def snapshot(
    page: Page,
    task: str,
    history: Sequence[str],
    max_tokens: int,
    count: Callable[[str], int] = count_tokens,
    controls: bool = False,
) -> Snapshot:
    """Shows a page within ``max_tokens``.

    Args:
      page: its elements.
      task: the instruction.
      history: labels and values of earlier actions, oldest first.
      max_tokens: budget; a single element may never exceed it.
      count: how many tokens a line has, see `token_count.counter`.
      controls: only what is made to be clicked, typed into or selected.

    Raises:
      ValueError: ``max_tokens`` is below 1.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
    lines = [element_line(e, i, task) for i, e in enumerate(page.elements, 1)]
    costs = [count(line) for line in lines]
    chosen = {i for i, e in enumerate(page.elements) if not controls or e.rank == CONTROL}
    if sum(costs[i] for i in chosen) <= max_tokens:
        return Snapshot("\n".join(lines[i] for i in sorted(chosen)), frozenset(chosen))
    order = [i for i in ranking(page, task, history) if i in chosen]
    shown = fitting(order, costs, max_tokens)
    kept = [lines[i] for i in sorted(shown)]
    return Snapshot("\n".join([*kept, f"({len(chosen) - len(kept)} more not shown)"]), shown)


def fitting(order: Iterable[int], costs: Sequence[int], max_tokens: int) -> frozenset[int]:
    """The positions taken in ``order``, leaving out what does not fit the rest of the budget."""
    left, shown = max_tokens, []
    for i in order:
        if costs[i] <= left:
            shown.append(i)
            left -= costs[i]
    return frozenset(shown)


def ranking(page: Page, task: str, history: Sequence[str]) -> list[int]:
    """Positions of the elements, most relevant first (see the text of the module)."""
    scores = _relevance(page, task, history)
    units = _units(page.elements)
    rank = [min(page.elements[i].rank for i in unit) for unit in units]
    worth = [
        round(max(scores[i] for i in unit) - WRAPPER_WEIGHT * (r == WRAPPER), 9)
        for unit, r in zip(units, rank, strict=True)
    ]
    turn = _turns([_kind(page.elements, unit) for unit in units])
    best = sorted(range(len(units)), key=lambda u: (-worth[u], turn[u]))
    order: list[int] = []
    doubles: list[int] = []  # of units further down, whose names are shown once before any twice
    taken: set[int] = set()
    for place, u in enumerate(best):
        for unit in (u, _text_before(u, units, rank)):
            if unit in taken:
                continue
            taken.add(unit)
            members = sorted(units[unit], key=lambda i: page.elements[i].rank)
            whole = len(members) if place < WHOLE_UNITS else 1
            order += members[:whole]
            doubles += members[whole:]
    return order + doubles


def _relevance(page: Page, task: str, history: Sequence[str]) -> list[float]:
    """How near the words of each element are to the task and the last actions."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [" ".join((e.label, e.context, *shown_options(e, task))) for e in page.elements]
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 4))
    try:
        matrix = vectorizer.fit_transform(texts)
    except ValueError:  # no label has a letter
        return [0.0] * len(texts)
    queries = vectorizer.transform([task, " ".join(history[-RECENT_ACTIONS:])])
    # Rows have unit length, so products are cosines; a few letters in common say nothing.
    cosines = (matrix @ queries.T).toarray()
    cosines[cosines < LEAST_COSINE] = 0.0
    return (cosines @ np.array([1.0, HISTORY_WEIGHT])).tolist()


def _units(elements: Sequence[Element]) -> list[list[int]]:
    """Neighbours of one name, at most one control in each."""
    units: list[list[int]] = []
    controls = 0
    for i, element in enumerate(elements):
        is_control = element.rank == CONTROL
        before = elements[i - 1].label if i else ""
        if before and element.label == before and controls + is_control <= 1:
            units[-1].append(i)
            controls += is_control
        else:
            units.append([i])
            controls = int(is_control)
    return units


def _text_before(u: int, units: Sequence[Sequence[int]], rank: Sequence[int]) -> int:
    """The unit of the text before a control, or the unit itself where there is none."""
    if rank[u] != CONTROL:
        return u
    for before in range(u - 1, max(-1, u - 1 - _BESIDE), -1):
        if rank[before] == CONTROL:
            break
        if rank[before] == TEXT:
            return before
    return u


def _kind(elements: Sequence[Element], unit: Sequence[int]) -> tuple[str, str]:
    """(role, label) of a unit's control, or of its first element; all wrappers are one role."""
    first = min(unit, key=lambda i: elements[i].rank)
    element = elements[first]
    return ("" if element.rank == WRAPPER else element.role), element.label


def _turns(kinds: Sequence[tuple[str, str]]) -> list[tuple[int, int]]:
    """When each unit comes among equally relevant ones.

    Roles take turns, so that a few fields and buttons are not crowded out by many links; in a role new
    labels come before repeated ones, and both evenly over the page.
    """
    spread = _spread(len(kinds))
    times: Counter[tuple[str, str]] = Counter()
    by_role = defaultdict(list)
    for u in sorted(range(len(kinds)), key=spread.__getitem__):
        by_role[kinds[u][0]].append((times[kinds[u]], spread[u], u))
        times[kinds[u]] += 1
    turns = [(0, 0)] * len(kinds)
    for units in by_role.values():
        for turn, (_, place, u) in enumerate(sorted(units)):
            turns[u] = turn, place
    return turns


def _spread(size: int) -> list[int]:
    """For each of ``size`` places when it comes in an order that fills them evenly.

    >>> _spread(8)
    [0, 4, 2, 6, 1, 5, 3, 7]
    """
    bits = max(1, (size - 1).bit_length())
    return [int(f"{i:0{bits}b}"[::-1], 2) for i in range(size)]
