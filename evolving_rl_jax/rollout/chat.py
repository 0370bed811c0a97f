"""A chat model's turns as token ids that are appended and never change.

What stands around a message (``<|im_start|>user`` and the like) is taken from the tokenizer's own
chat template, by rendering it with markers for messages and reading what is between them.  Only
that text may become special tokens: messages are always plain characters, whatever they contain.
`ChatFormat.check` proves for a tokenizer that appending turn by turn gives the ids of rendering the
whole conversation; what the policy samples is kept as sampled, and never rendered again.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Iterable, Sequence

# The date that a template may ask for: fixed, so that a run has the same prompts on every day.
_DATE = datetime.date(2024, 7, 26)
_MARKS = ("SystemMark7", "FirstMark7", "AnswerMark7", "SecondMark7")

# Conversations of the check: [system, user, assistant, user, ...].  They begin and end with what
# tokenizers merge most readily with what is around it: punctuation, digits, other scripts.
_PROBES = (
    (
        "Follow the rules.\n\n# Skill: mugs\n\n- They are kept in cabinet 3.",
        "Task: put a hot mug in fridge.\n\nObservation:\nYou see a cabinet 1, and a fridge 1.\n\n"
        "Admissible actions:\n- go to cabinet 1\n- look",
        "<reasoning>Cabinets first.</reasoning>\n<action>go to cabinet 1</action>",
        "Observation:\nNothing happens.",
        "<reasoning>\n\nIt did not work.\n</reasoning><action> look </action>",
        "Observation:\nOn the cabinet 1, you see a mug 2.\n\nAdmissible actions:\n- take mug 2",
        "<action>take mug 2",
        "The episode has ended.",
    ),
    ("0", "'s 12", "1", "2", "-", "..", "?!", '{"name": "x"}', '{"a": [1]}', "é 你好 🙂", "ß", "z"),
)


class ChatFormat:
    """The turns of one tokenizer's chat template as ids.

    Attributes:
      end_id: the special token that ends an assistant's turn.

    Args:
      tokenizer: with ``chat_template``, ``named_tokens``, ``special_ids``, ``encode``, ``path``.

    Raises:
      ValueError: there is no chat template, or its turns cannot be appended; says why and where.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self._template = self._compile()
        specials = sorted(tokenizer.special_ids, key=len, reverse=True)
        self._special = re.compile("(" + "|".join(map(re.escape, specials)) + ")")
        self._before, self._between, self._after, self._turn = self._derive()
        start = self._special.match(self._turn)
        if not start:
            raise self._error(f"a turn must end with a special token, got {self._turn[:20]!r}")
        self.end_id = tokenizer.special_ids[start.group()]
        self._turn = self._turn[start.end() :]

    def opening(self, system: str | None, user: str) -> list[int]:
        """Ids up to where the assistant's first turn begins; ``system`` None = there is no such message.

        Raises:
          ValueError: the template wants one.
        """
        if system is None:
            before, after = self._without_system
            return self._ids([(before, True), (user.strip(), False), (after, True)])
        return self._ids(
            [(self._before, True), (system.strip(), False), (self._between, True)]
            + [(user.strip(), False), (self._after, True)]
        )

    def next_turn(self, user: str, last_id: int | None = None) -> list[int]:
        """Ids appended after an assistant's turn, up to where its next one begins.

        Args:
          user: the message.
          last_id: last id of the sequence so far; the turn is closed here when that did not do it
            (it was cut off, or ended with another stop token).
        """
        ids = self._ids([(self._turn, True), (user.strip(), False), (self._after, True)])
        return ids if last_id == self.end_id else [self.end_id, *ids]

    def answer(self, text: str) -> list[int]:
        """Ids of an assistant's turn as a teacher writes it, end token included."""
        return [*self.tokenizer.encode(text), self.end_id]

    def render(self, messages: Sequence[str], *, system: bool = True) -> str:
        """The conversation [system, user, assistant, user, ...] as the template writes it.

        Args:
          messages: in this order.
          system: whether the first one is the system message.
        """
        import jinja2

        roles = [*["system"] * system, *("user", "assistant") * len(messages)]
        conversation = [{"role": r, "content": m} for r, m in zip(roles, messages, strict=False)]
        try:
            return self._template.render(
                messages=conversation,
                add_generation_prompt=True,
                tools=None,
                documents=None,
                **self.tokenizer.named_tokens,
            )
        except (jinja2.TemplateError, TypeError, AttributeError) as error:
            raise self._error(f"the template refuses a conversation: {error}") from None

    def check(self) -> None:
        """Proves that appending turns gives the ids of the whole rendering, for this tokenizer.

        Raises:
          ValueError: it does not; names the first differing place.
        """
        import tokenizers

        special_ids = set(self.tokenizer.special_ids.values())
        for text in self.tokenizer.special_ids:
            if special_ids.intersection(self.tokenizer.encode(f"a {text}b")):
                raise self._error(f"{text!r} inside a message would become a special token")
        # The file as it is: `tokenizer` itself reads no special tokens.
        plain = tokenizers.Tokenizer.from_file(str(self.tokenizer.path / "tokenizer.json"))
        plain.no_truncation()
        plain.no_padding()
        for probe in _PROBES:
            ids = self.opening(*probe[:2])
            for end in range(2, len(probe) + 1, 2):
                text = self.render([m.strip() for m in probe[:end]])
                self._compare(ids, plain.encode(text, add_special_tokens=False).ids, end // 2)
                if end < len(probe):
                    ids += self.answer(probe[end].strip())
                    ids += self.next_turn(probe[end + 1], last_id=ids[-1])

    # -- how it is derived -----------------------------------------------------------------------

    def _compile(self):
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        source = self.tokenizer.chat_template
        if not source:
            raise ValueError(
                f"{self.tokenizer.path} must have a chat template (tokenizer_config.json or "
                "chat_template.jinja), found none"
            )
        # What transformers marks as said by the assistant renders as it is.
        source = re.sub(r"{%(-?)\s*generation\s*(-?)%}", r"{%\1 if true \2%}", source)
        source = re.sub(r"{%(-?)\s*endgeneration\s*(-?)%}", r"{%\1 endif \2%}", source)
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _DATE.strftime
        environment.filters["tojson"] = lambda x, **_: json.dumps(x, ensure_ascii=False)
        try:
            return environment.from_string(source)
        except jinja2.TemplateError as error:
            raise self._error(f"the template cannot be read: {error}") from None

    def _derive(self) -> tuple[str, str, str, str]:
        """(before the system message, before the first user message, after a user message,
        between the assistant's message and the next user message)."""
        system, first, answer, second = _MARKS
        opening, whole = self.render(_MARKS[:2]), self.render(_MARKS)
        before, between, after = self._split(opening, (system, first))
        if not whole.startswith(opening):
            place = _first_difference(opening, whole)
            raise self._error(
                "a later turn changes the text of earlier ones, first at character "
                f"{place}: {opening[place : place + 40]!r} becomes {whole[place : place + 40]!r}"
            )
        start, turn, end = self._split(whole[len(opening) :], (answer, second))
        if start:
            raise self._error(f"it puts {start!r} before an answer that it did not ask with")
        if end != after:
            raise self._error(f"user turns are not all written alike: {after!r} and {end!r}")
        return before, between, after, turn

    @functools.cached_property
    def _without_system(self) -> tuple[str, str]:
        """(before, after) the first user message of a conversation without a system message."""
        before, after = self._split(self.render(_MARKS[1:2], system=False), _MARKS[1:2])
        if after != self._after:
            raise self._error(
                f"user turns are not all written alike: {self._after!r} and {after!r}"
            )
        return before, after

    def _split(self, text: str, marks: Sequence[str]) -> list[str]:
        parts = re.split("|".join(marks), text)
        if re.findall("|".join(marks), text) != list(marks):
            raise self._error(f"messages must come once each and in order, got {text[:200]!r}")
        return parts

    def _ids(self, parts: Iterable[tuple[str, bool]]) -> list[int]:
        """Ids of (text, is it the template's) parts; only the template's may hold special tokens.

        Text between two special tokens is encoded in one piece, as the whole rendering would be.
        """
        ids, text = [], ""
        for part, of_template in parts:
            for piece in self._special.split(part) if of_template else [part]:
                if of_template and piece in self.tokenizer.special_ids:
                    ids += [*self.tokenizer.encode(text), self.tokenizer.special_ids[piece]]
                    text = ""
                else:
                    text += piece
        return ids + list(self.tokenizer.encode(text))

    def _compare(self, ids: list[int], expected: list[int], turn: int) -> None:
        if ids == expected:
            return
        i = _first_difference(ids, expected)
        decode = self.tokenizer.decode
        got, wanted = ids[i : i + 3], expected[i : i + 3]
        raise self._error(
            f"appended ids differ from the whole rendering in turn {turn} at token {i}, after "
            f"{decode(ids[max(0, i - 8) : i])!r}: {got} {decode(got)!r} against "
            f"{wanted} {decode(wanted)!r}"
        )

    def _error(self, reason: str) -> ValueError:
        start = "the chat template must let turns be appended as ids, but"
        return ValueError(f"{self.tokenizer.path}: {start} {reason}")


def _first_difference(a: Sequence, b: Sequence) -> int:
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def _raise_exception(message):
    import jinja2

    raise jinja2.TemplateError(message)
