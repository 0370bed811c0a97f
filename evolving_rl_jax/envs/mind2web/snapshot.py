"""The page as the agent reads it: one line an element, within a budget of tokens.

A page that fits is shown whole.  Of a larger one the most relevant elements are shown, in the order of
the page.  Relevance knows the page, the task and the earlier actions, never the gold action:

    cosine(task, element) + 0.5 cosine(last three actions, element) - 0.1 rank

with TF-IDF over the page's elements (character 3- and 4-grams within words, so that "flights" finds
"flight") and rank 0 for controls, 1 for texts, 2 for parts of a control.  Ties go in page order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from evolving_rl_jax.envs.mind2web.page import Element, Page

__all__ = ["Snapshot", "count_tokens", "element_line", "ranking", "snapshot"]

SHOWN_OPTIONS = 12
HISTORY_WEIGHT, RANK_WEIGHT, RECENT_ACTIONS = 0.5, 0.1, 3
# Six letters or digits, or one mark, count as one token: close to what language models' tokenizers give.
_PIECE = re.compile(r"\w{1,6}|[^\w\s]")


class Snapshot(NamedTuple):
    """What is shown of a page.

    Attributes:
      text: one line an element; a last line says how many are left out.
      shown: positions of the shown elements on the page.
    """

    text: str
    shown: frozenset[int]


def count_tokens(text: str) -> int:
    """Tokens of a text, as an estimate that needs no tokenizer.

    >>> count_tokens('button "Search" [ref=e12]')
    8
    """
    return len(_PIECE.findall(text))


def element_line(element: Element, number: int) -> str:
    """``combobox "Size" (mug) [ref=e3] = "M" of S | M | L``."""
    line = f"{element.name} [ref=e{number}]"
    if element.value:
        line += f' = "{element.value}"'
    if element.options:
        more = " | ..." if len(element.options) > SHOWN_OPTIONS else ""
        line += f" of {' | '.join(element.options[:SHOWN_OPTIONS])}{more}"
    return line


def snapshot(page: Page, task: str, history: Sequence[str], max_tokens: int) -> Snapshot:
    """Shows a page within ``max_tokens``.

    Args:
      page: its elements.
      task: the instruction.
      history: earlier actions, oldest first.
      max_tokens: budget as ``count_tokens`` counts; a single element may never exceed it.

    Raises:
      ValueError: ``max_tokens`` is below 1.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
    lines = [element_line(e, i) for i, e in enumerate(page.elements, 1)]
    costs = [count_tokens(line) for line in lines]
    if sum(costs) <= max_tokens:
        return Snapshot("\n".join(lines), frozenset(range(len(lines))))
    shown = fitting(ranking(page, task, history), costs, max_tokens)
    kept = [lines[i] for i in sorted(shown)]
    return Snapshot("\n".join([*kept, f"({len(lines) - len(kept)} more not shown)"]), shown)


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
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    elements = page.elements
    texts = [" ".join((e.label, e.context, *e.options[:SHOWN_OPTIONS])) for e in elements]
    scores = np.array([-RANK_WEIGHT * e.rank for e in elements])
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 4))
    try:
        matrix = vectorizer.fit_transform(texts)
    except ValueError:  # no label has a letter
        return np.argsort(-scores, kind="stable").tolist()
    queries = vectorizer.transform([task, " ".join(history[-RECENT_ACTIONS:])])
    # Rows have unit length, so products are cosines.
    scores += (matrix @ queries.T).toarray() @ np.array([1.0, HISTORY_WEIGHT])
    return np.argsort(-scores.round(9), kind="stable").tolist()
