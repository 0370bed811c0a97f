"""How many tokens a text has: an estimate without a tokenizer, and one fitted to the policy's own.

Workers have no tokenizer, and a page of a thousand lines is counted for every step.  So what a tokenizer
makes of pages is measured once, when a run starts, as a weight for each kind of character.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence

__all__ = ["Weights", "counter", "fit_weights"]

# Tokens of: a line, a piece of a Latin word, a digit, a mark, a byte of other writing.
Weights = tuple[float, float, float, float, float]

# Six letters or digits, or one mark, count as one token: close to what language models' tokenizers give.
_PIECE = re.compile(r"\w{1,6}|[^\w\s]")
_LATIN, _DIGIT, _MARK = map(re.compile, (r"[A-Za-z]{1,6}", r"[0-9]", r"[!-/:-@[-`{-~]"))
_LEAST = 0.05  # weight, so that nothing is free
_ENOUGH = 0.95  # share of pages whose count may not be below the tokenizer's


def count_tokens(text: str) -> int:
    """Tokens of a text, as an estimate that needs no tokenizer.

    >>> count_tokens('button "Search" [ref=e12]')
    8
    """
    return len(_PIECE.findall(text))


def counter(weights: Weights | tuple[()]) -> Callable[[str], int]:
    """A function that counts by ``weights``, or estimates where there are none."""
    return functools.partial(_weighted, weights) if weights else count_tokens


def _weighted(weights: Weights, text: str) -> int:
    return max(1, round(sum(w * x for w, x in zip(weights, _features(text), strict=True))))


def _features(text: str) -> tuple[int, int, int, int, int]:
    others = 0 if text.isascii() else len(text.encode("utf-8", "replace")) - _ascii(text)
    found = (len(pattern.findall(text)) for pattern in (_LATIN, _DIGIT, _MARK))
    return (1, *found, others)


def _ascii(text: str) -> int:
    return sum(c < "\x80" for c in text)


def fit_weights(pages: Sequence[Sequence[str]], count: Callable[[list[str]], list[int]]) -> Weights:
    """The weights with which few pages have more tokens than counted.

    Args:
      pages: the lines of each; at least one line in all.
      count: texts -> tokens of each, by the policy's tokenizer.
    """
    import numpy as np
    from scipy.optimize import nnls

    lines = [line for page in pages for line in page]
    found = dict(zip(lines, count([f"{line}\n" for line in lines]), strict=True))
    features = np.array([_features(line) for line in lines], float)
    tokens = np.array([found[line] for line in lines], float)
    weights = np.maximum(nnls(features, tokens)[0], _LEAST)
    if not features[:, 4].any():
        weights[4] = 1.0  # other writing was not seen: a byte is a token at most
    ratios = [
        sum(found[line] for line in page) / sum(_weighted(tuple(weights), line) for line in page)
        for page in pages
        if page
    ]
    return tuple(float(w) for w in weights * max(1.0, float(np.quantile(ratios, _ENOUGH))))
