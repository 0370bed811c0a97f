"""From what a policy wrote to the action that its environment is given.

An answer is never refused here: an invalid one still names some action (which the environment will
answer with "Nothing happens."), and the flag says that the form was wrong.
"""

from __future__ import annotations

import re

_FLAGS = re.IGNORECASE | re.ASCII
ACTION, REASONING = (
    (re.compile(f"<{tag}>", _FLAGS), re.compile(f"</{tag}>", _FLAGS))
    for tag in ("action", "reasoning")
)
_CHINESE = re.compile("[\u4e00-\u9fff]")
_FALLBACK_CHARACTERS = 30


def parse_tagged(text: str) -> tuple[str, bool]:
    """Reads ``<reasoning>...</reasoning><action>...</action>``.

    Args:
      text: model output; tags in any case and order, the action may span lines.

    Returns:
      ``(action, valid)``.  The action is the first tagged one, stripped and lower-cased, or,
      without one, the last 30 characters of the text in lower case.  Valid needs a non-empty tagged
      action, a reasoning block and no Chinese character.

    >>> parse_tagged("<reasoning>It is closed.</reasoning><action> Open fridge 1 </action>")
    ('open fridge 1', True)
    """
    tagged = between(text, ACTION)
    if tagged is None:
        return text.lower()[-_FALLBACK_CHARACTERS:], False
    action = tagged.strip().lower()
    reasoned = between(text, REASONING) is not None
    return action, bool(action) and reasoned and not _CHINESE.search(text)


def parse_compact(text: str) -> tuple[str, str, bool]:
    """Reads the short form of small policies, ``target> action``.

    Args:
      text: model output, one line; blanks and newlines around it are ignored.

    Returns:
      ``(target, action, valid)``, stripped and lower-cased; split at the first ``>``.  Valid needs
      both parts and no newline inside.  Without a ``>`` the whole text is the action.

    >>> parse_compact("mug> go to cabinet 3")
    ('mug', 'go to cabinet 3', True)
    >>> parse_compact("look")
    ('', 'look', False)
    """
    text = text.strip().lower()
    target, mark, action = text.partition(">")
    if not mark:
        return "", text, False
    target, action = target.strip(), action.strip()
    valid = bool(target) and bool(action) and len(text.splitlines()) == 1
    return target, action, valid


def parse_line(text: str) -> tuple[str, bool]:
    """Reads an answer that is one action on one line.

    Args:
      text: model output; blanks and newlines around it are ignored.

    Returns:
      ``(action, valid)``: the first line in lower case.  Valid needs one line that is not empty and has
      no Chinese character.

    >>> parse_line(" Open fridge 1\\n")
    ('open fridge 1', True)
    >>> parse_line("look\\nopen fridge 1")
    ('look', False)
    """
    lines = text.strip().lower().splitlines()
    action = lines[0].strip() if lines else ""
    return action, len(lines) == 1 and not _CHINESE.search(action)


def between(text: str, tags: tuple[re.Pattern[str], re.Pattern[str]]) -> str | None:
    """The text between the first opening tag and the next closing one, in linear time."""
    start = tags[0].search(text)
    end = start and tags[1].search(text, start.end())
    return text[start.end() : end.start()] if start and end else None
