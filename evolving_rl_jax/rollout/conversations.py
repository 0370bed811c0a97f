"""Conversations to learn from: JSON lines in the ``messages`` form, as sequences of the chat template.

A line is ``{"messages": [{"role": "user", "content": "..."}, ...]}``: perhaps a system message, then
turns of user and assistant.  Only what the assistant says is taught, its end token included; what the
user says after it is left out.  Other keys of a line are for others and are not read.
"""

from __future__ import annotations

import collections
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from evolving_rl_jax.rollout.chat import ChatFormat
from evolving_rl_jax.rollout.contexts import Transcript
from evolving_rl_jax.types import Sample

__all__ = ["Conversations", "read_conversations"]

ROLES = ("system", "user", "assistant")
_THINK = "<think>"
_SHOWN = 3  # lines that an error names of each kind


class Conversations(NamedTuple):
    """What a file holds.

    Attributes:
      samples: one sequence for each conversation that can be used, in the order of the file.
      lines: its line in the file, from 1.
      problems: why others cannot be used -> (line, detail) of each.
    """

    samples: list[Sample]
    lines: list[int]
    problems: dict[str, list[tuple[int, str]]]

    def explain(self) -> str:
        """The problems in one line: how many of each kind, and where the first ones are."""
        total = len(self.samples) + sum(map(len, self.problems.values()))
        kinds = []
        for reason, found in self.problems.items():
            where = ", ".join(f"line {n}{f' ({d})' if d else ''}" for n, d in found[:_SHOWN])
            more = ", ..." if len(found) > _SHOWN else ""
            kinds.append(f"{len(found)} {reason} ({where}{more})")
        return f"{total - len(self.samples)} of {total} conversations: {'; '.join(kinds)}"


class _Unusable(Exception):
    """A conversation that cannot be used: (kind of problem, detail)."""


def read_conversations(path: str | pathlib.Path, chat: ChatFormat, longest: int) -> Conversations:
    """Reads a file of conversations.

    Args:
      path: JSON lines, UTF-8.
      chat: the turns of the policy's chat template.
      longest: most tokens of a sequence.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no text, or has no conversation.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} must be a file of conversations, found no such file")
    result = Conversations([], [], collections.defaultdict(list))
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    _add(result, number, line, chat, longest)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8, got {error}") from None
    if not result.samples and not result.problems:
        raise ValueError(f"{path} must hold conversations, one a line, found none")
    return result


def _add(result: Conversations, number: int, line: str, chat: ChatFormat, longest: int) -> None:
    try:
        sample = _sample(list(_messages(line)), chat)
        if len(sample.tokens) > longest:
            raise _Unusable(f"longer than {longest} tokens", f"{len(sample.tokens)} tokens")
    except _Unusable as error:
        reason, detail = error.args
        result.problems[reason].append((number, detail))
        return
    result.samples.append(sample)
    result.lines.append(number)


def _messages(line: str) -> Iterator[tuple[str, str]]:
    """(role, text) of every message of a line."""
    try:
        raw = json.loads(line)
    except ValueError:
        raise _Unusable("no JSON", "") from None
    messages = raw.get("messages") if isinstance(raw, dict) else None
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise _Unusable("without a list of messages", "")
    for message in messages:
        role = message.get("role")
        if role not in ROLES:
            raise _Unusable("with an unknown role", str(role)[:40])
        yield role, _text(message)


def _text(message: dict) -> str:
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(p, dict) for p in content):
        kinds = {p.get("type") for p in content} - {"text"}
        if kinds:
            raise _Unusable("with something else than text", ", ".join(map(str, kinds))[:40])
        content = "".join(str(p.get("text", "")) for p in content)
    if not isinstance(content, str) or not content.strip() and message["role"] != "system":
        raise _Unusable("with a message without text", message["role"])
    for key in ("tool_calls", "function_call", "reasoning_content"):
        if message.get(key):
            raise _Unusable("with something else than text", key)
    return content


def _sample(messages: Sequence[tuple[str, str]], chat: ChatFormat) -> Sample:
    """The sequence of a conversation, up to the end of the assistant's last turn."""
    system = None
    if messages and messages[0][0] == "system":
        system, messages = messages[0][1], messages[1:]
    if not any(role == "assistant" for role, _ in messages):
        raise _Unusable("without an assistant turn", "")
    expected = ("user", "assistant") * len(messages)
    for i, ((role, _), wanted) in enumerate(zip(messages, expected, strict=False), start=1):
        if role != wanted:
            raise _Unusable("with turns out of order", f"{role} where {wanted} {i} is due")
    if _THINK in chat.tokenizer.special_ids and any(
        _THINK in text for role, text in messages if role == "assistant"
    ):  # a template writes it as a token, and not in every turn; here it would be characters
        raise _Unusable("with reasoning in an answer", _THINK)
    transcript = Transcript()
    for i in range(0, len(messages) - 1, 2):
        user, answer = messages[i][1], messages[i + 1][1]
        try:
            ids = chat.next_turn(user, chat.end_id) if i else chat.opening(system, user)
        except ValueError as error:  # a template that wants a system message
            raise _Unusable("that the template refuses", str(error)[-80:]) from None
        transcript.append_forced(ids)
        transcript.append_taught(chat.answer(answer.strip()))
    return transcript.sample()
