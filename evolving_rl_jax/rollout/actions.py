"""From what a policy wrote to the action that its environment is given.

An answer is never refused here: an invalid one still names some action (which the environment will
answer with "Nothing happens."), and the flag says that the form was wrong.
"""

from __future__ import annotations

import re

from evolving_rl_jax.envs.mind2web import actions as web_actions

_FLAGS = re.IGNORECASE | re.ASCII
_ACTION = (re.compile("<action>", _FLAGS), re.compile("</action>", _FLAGS))
_REASONING = (re.compile("<reasoning>", _FLAGS), re.compile("</reasoning>", _FLAGS))
_CHINESE = re.compile("[\u4e00-\u9fff]")
_FALLBACK_CHARACTERS = 30
_COMPACT_REF = re.compile(r"(?:^|\s)(\d+)$")


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
    tagged = _between(text, *_ACTION)
    if tagged is None:
        return text.lower()[-_FALLBACK_CHARACTERS:], False
    action = tagged.strip().lower()
    reasoned = _between(text, *_REASONING) is not None
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


def parse_web(text: str) -> tuple[str, bool]:
    """Reads ``<reasoning>...</reasoning><action>{"op": ..., "ref": ..., "value": ...}</action>``.

    Returns:
      ``(action, valid)``.  The action is the first tagged text, stripped, or all of the text without
      one.  Valid needs a reasoning block and an action that web environments can read.

    >>> parse_web('<reasoning>Search.</reasoning><action>{"op": "CLICK", "ref": "e3"}</action>')
    ('{"op": "CLICK", "ref": "e3"}', True)
    """
    tagged = _between(text, *_ACTION)
    if tagged is None:
        return text.strip(), False
    action = tagged.strip()
    reasoned = _between(text, *_REASONING) is not None
    return action, reasoned and web_actions.parse_action(action) is not None


def parse_web_compact(text: str) -> tuple[str, bool]:
    """Reads the short form of small policies, ``search header 3> click``.

    Left of the ``>`` is what is meant, with the number of its ref at the end; right of it the operation
    and its value.

    Returns:
      ``(action, valid)``: the action as the JSON that web environments read, or the text as it is.

    >>> parse_web_compact("city 5> select new york")
    ('{"op": "SELECT", "ref": "e5", "value": "new york"}', True)
    """
    target, action, valid = parse_compact(text)
    op, _, value = action.partition(" ")
    ref = _COMPACT_REF.search(target)
    if not valid or ref is None or op.upper() not in web_actions.OPS:
        return text.strip(), False
    return web_actions.WebAction(op.upper(), int(ref[1]), value.strip()).to_json(), True


def _between(text: str, opening: re.Pattern[str], closing: re.Pattern[str]) -> str | None:
    """The text between the first opening tag and the next closing one, in linear time."""
    start = opening.search(text)
    end = start and closing.search(text, start.end())
    return text[start.end() : end.start()] if start and end else None
