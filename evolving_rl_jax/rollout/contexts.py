"""What of an episode stays in the prompt of its next turn, and which sequences it is trained on.

``full`` keeps the whole trajectory: every turn is appended, and the episode is one sequence.
``recent`` shows the task and the last h turns: every turn is a sequence of its own.
Either way what was sampled stays as it was sampled; only forced tokens are ever written again.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable

import numpy as np

from evolving_rl_jax.types import Sample, Task

# Lines of a page that an extraction shows where all do not fit, tried in this order.
_SHORTER = (64, 32, 16, 8)

# (what was read, actions) -> the ids that open a trajectory.
Opening = Callable[[str, tuple[str, ...]], list[int]]


class Transcript:
    """The tokens of one sequence, with the mask and log-probabilities of the sampled ones."""

    def __init__(self):
        self.tokens: list[np.ndarray] = []
        self.mask: list[np.ndarray] = []
        self.logprobs: list[np.ndarray] = []
        self.sampling: list[np.ndarray] = []
        self.floors: list[np.ndarray | None] = []

    def append_forced(self, ids) -> None:
        """Adds tokens that the policy was given."""
        zeros = np.zeros(len(ids), np.float32)
        self._append(np.asarray(ids, np.int32), zeros, zeros, zeros, zeros)

    def append_sampled(self, ids, logprobs, sampling_logprobs, floor_logprobs=None) -> None:
        """Adds tokens that the policy sampled; ``floor_logprobs`` None: nobody recorded them."""
        ids = np.asarray(ids, np.int32)
        mask = np.ones(len(ids), np.float32)
        self._append(ids, mask, logprobs, sampling_logprobs, floor_logprobs)

    def append_taught(self, ids) -> None:
        """Adds tokens as a policy would have sampled them, without log-probabilities."""
        zeros = np.zeros(len(ids), np.float32)
        self.append_sampled(ids, zeros, zeros)

    def _append(self, ids, mask, logprobs, sampling, floors):
        self.tokens.append(ids)
        self.mask.append(mask)
        self.logprobs.append(np.asarray(logprobs, np.float32))
        self.sampling.append(np.asarray(sampling, np.float32))
        self.floors.append(None if floors is None else np.asarray(floors, np.float32))

    def drop_last(self) -> None:
        """Takes the last addition back."""
        for parts in (self.tokens, self.mask, self.logprobs, self.sampling, self.floors):
            parts.pop()

    def reopened(self, ids) -> Transcript:
        """The same with other forced tokens in the place of the first addition."""
        other = Transcript()
        other.append_forced(ids)
        for name in ("tokens", "mask", "logprobs", "sampling", "floors"):
            getattr(other, name).extend(getattr(self, name)[1:])
        return other

    @property
    def last_id(self) -> int | None:
        """The last token, or None when there is none."""
        return next((int(part[-1]) for part in reversed(self.tokens) if len(part)), None)

    def sample(self, step: int = 0) -> Sample:
        """The sequence so far as arrays; ``step`` is the turn that it trains, see `types.Sample`."""

        def join(parts, dtype):
            return np.concatenate(parts) if parts else np.zeros(0, dtype)

        recorded = all(part is not None for part in self.floors)
        return Sample(
            tokens=join(self.tokens, np.int32),
            loss_mask=join(self.mask, np.float32),
            logprobs=join(self.logprobs, np.float32),
            sampling_logprobs=join(self.sampling, np.float32),
            floor_logprobs=join(self.floors, np.float32) if recorded else None,
            step=step,
        )


@dataclasses.dataclass
class _Seen:
    """One turn: what was read, and the ids that were answered."""

    text: str
    actions: tuple[str, ...]
    ids: list[int] = dataclasses.field(default_factory=list)
    action: str = ""


class _Context:
    """What both kinds share: the turns of an episode, and prompts that show the last of them."""

    def __init__(self, prompts, task: Task, skill_text: str):
        self._prompts, self._task, self._skill_text = prompts, task, skill_text
        self._seen: list[_Seen] = []
        self.extracted: dict[str, int] = {}  # turns of the last extraction, and how they were shown

    def acted(self, action: str) -> None:
        """The action that the last turn's answer was understood as."""
        if self._seen:
            self._seen[-1].action = action

    @property
    def task(self) -> Task:
        """Of the episode."""
        return self._task

    @property
    def num_turns(self) -> int:
        """Turns that the policy took."""
        return len(self._seen)

    @property
    def last_id(self) -> int | None:
        """The last id that was sampled, or None."""
        return self._seen[-1].ids[-1] if self._seen else None

    def _open(self, text: str, actions: tuple[str, ...]) -> list[int]:
        return self._prompts.solver_prompt(self._task, self._skill_text, text, actions)

    def _following(self, shown: list[_Seen]) -> list[list[int]]:
        """The ids that each turn but the first adds: what was read, then what was answered."""
        return [
            self._prompts.next_turn(
                after.text, after.actions, before=before.actions, last_id=(before.ids or [None])[-1]
            )
            + after.ids
            for before, after in itertools.pairwise(shown)
        ]

    def _render(self, first: int) -> list[int]:
        shown = self._seen[first:]
        ids = self._open(shown[0].text, shown[0].actions) + shown[0].ids
        return ids + [i for piece in self._following(shown) for i in piece]

    def _shortened(
        self,
        first: int,
        room: int,
        seen: list[_Seen] | None = None,
        opening: Opening | None = None,
    ) -> list[int]:
        """The trajectory from turn ``first`` on, or from as many turns later as ``room`` asks for.

        ``seen`` are the turns as they are shown; None = as they were.  ``opening``: see `told`.

        The oldest turn shown takes the place of the episode's first, so it has the form of a shorter
        episode's.  The last turn is always shown.
        """
        seen = self._seen if seen is None else seen
        if not seen:
            return []
        first = min(first, len(seen) - 1)
        pieces = self._following(seen[first:])
        left = sum(map(len, pieces))
        for turn, piece in zip(seen[first:], [*pieces, []], strict=True):
            head = (opening or self._open)(turn.text, turn.actions) + turn.ids
            if len(head) + left <= room or not pieces:
                break
            left -= len(piece)
            pieces.pop(0)
        dropped = len(seen) - 1 - len(pieces)
        self.extracted = {"turns": len(seen), "turns_dropped": dropped}
        return head + [i for piece in pieces for i in piece]


class FullContext(_Context):
    """The whole trajectory, in one session and one sequence.

    Args:
      prompts: a style of ``rollout.prompts``.
      task: of the episode.
      skill_text: in its prompt; empty for none.
    """

    def __init__(self, prompts, task: Task, skill_text: str):
        super().__init__(prompts, task, skill_text)
        self._transcript = Transcript()

    def observe(self, text: str, actions) -> tuple[list[int], bool]:
        """(ids to submit for the next turn, whether they need a new session)."""
        self._seen.append(_Seen(text, tuple(actions)))
        last_id = self._transcript.last_id
        if last_id is None:
            ids = self._open(text, tuple(actions))
        else:
            before = self._seen[-2].actions
            ids = self._prompts.next_turn(text, actions, before=before, last_id=last_id)
        self._transcript.append_forced(ids)
        return ids, False

    def unread(self) -> None:
        """The last observation did not fit, so the policy never read it."""
        self._seen.pop()
        self._transcript.drop_last()

    def act(self, ids, *logprobs) -> None:
        """Adds what the policy sampled, see `Transcript.append_sampled`."""
        self._seen[-1].ids = [int(i) for i in ids]
        self._transcript.append_sampled(ids, *logprobs)

    def samples(self) -> list[Sample]:
        """The one sequence; none where the policy sampled nothing."""
        return [self._transcript.sample()] if self._seen else []

    def without_skill(self) -> list[Sample]:
        """`samples` as the same episode reads without a skill; what was sampled stays as it is."""
        if not self._seen:
            return []
        first = self._seen[0]
        opening = self._prompts.solver_prompt(self._task, "", first.text, first.actions)
        return [self._transcript.reopened(opening).sample()]

    @property
    def last_id(self) -> int | None:
        """The last id of the session, or None."""
        return self._transcript.last_id

    def told(self, room: int, opening: Opening | None = None) -> list[int]:
        """The trajectory as an extraction reads it, in ``room`` tokens if that can be.

        The ids of the episode's session, or where they do not fit, a trajectory without its oldest turns;
        the last turn is always shown.

        Args:
          room: tokens for it.
          opening: how it begins, after other attempts; None = as the episode did.
        """
        self.extracted = {}
        if opening is not None:
            return self._shortened(0, room, opening=opening)
        ids = self._transcript.sample().tokens.tolist()
        if len(ids) > room and len(self._seen) > 1:
            ids = self._shortened(1, room)
        return ids

    def held(self, ids: list[int]) -> int:
        """How many of ``ids`` the episode's session holds: all of its own, or none."""
        own = self._transcript.sample().tokens.tolist()
        return len(own) if ids[: len(own)] == own else 0


class RecentContext(_Context):
    """The task and the last ``turns`` turns before the present one; a sequence for every turn.

    The oldest turn shown takes the place of the episode's first, so a prompt has the form of a
    shorter episode's.  As long as nothing has been left out, prompts grow and share a session.
    """

    def __init__(self, prompts, task: Task, skill_text: str, turns: int, lines: int = 0):
        super().__init__(prompts, task, skill_text)
        self._most, self._lines = turns, lines
        self._held: list[int] = []  # what the session holds
        self._prompt: list[int] = []
        self._samples: list[Sample] = []
        self._unread = 0

    def observe(self, text: str, actions) -> tuple[list[int], bool]:
        """(ids to submit for the next turn, whether they need a new session)."""
        self._seen.append(_Seen(text, tuple(actions)))
        self._prompt = self._render(max(0, len(self._seen) - 1 - self._most))
        held = len(self._held)
        if self._prompt[:held] == self._held:
            return self._prompt[held:], False
        return self._prompt, True

    def unread(self) -> None:
        """The last prompt did not fit, so the policy never read it."""
        self._seen.pop()
        self._unread += 1

    def act(self, ids, *logprobs) -> None:
        """Adds what the policy sampled, see `Transcript.append_sampled`."""
        transcript = Transcript()
        transcript.append_forced(self._prompt)
        transcript.append_sampled(ids, *logprobs)
        self._samples.append(transcript.sample(step=len(self._seen) - 1 + self._unread))
        self._seen[-1].ids = [int(i) for i in ids]
        self._held = self._prompt + self._seen[-1].ids

    def samples(self) -> list[Sample]:
        """A sequence for every turn."""
        return self._samples

    def without_skill(self) -> list[Sample]:
        """`samples` as the same episode reads without a skill; what was sampled stays as it is."""
        unguided = RecentContext(self._prompts, self._task, "", self._most)
        found = []
        for seen, sample in zip(self._seen, self._samples, strict=True):
            unguided.observe(seen.text, seen.actions)
            answer = sample.loss_mask > 0
            kept = sample.floor_logprobs
            transcript = Transcript()
            transcript.append_forced(unguided._prompt)
            transcript.append_sampled(
                sample.tokens[answer], sample.logprobs[answer], sample.sampling_logprobs[answer],
                None if kept is None else kept[answer],
            )  # fmt: skip
            found.append(transcript.sample(step=sample.step))
            unguided._seen[-1].ids = seen.ids
        return found

    def told(self, room: int, opening: Opening | None = None) -> list[int]:
        """As `FullContext.told`.

        Where it has more than ``room`` tokens, what was seen before the last turn is shortened, and only
        then the oldest turns are left out; ``extracted`` says how many.
        """
        self.extracted = {}
        tried = [n for n in _SHORTER if not self._lines or n < self._lines]
        tried = [self._lines or None, *tried]
        for lines in tried:
            shown = self._shorter(lines)
            most = room if lines == tried[-1] else sys.maxsize
            ids = self._shortened(0, most, shown, opening)
            if len(ids) <= room:
                break
        kept = slice(self.extracted.get("turns_dropped", 0), None)
        pairs = zip(shown[kept], self._seen[kept], strict=True)
        changed = sum(a.text != b.text for a, b in pairs)
        self.extracted |= {"turns_shortened": changed}
        return ids

    def _shorter(self, lines: int | None) -> list[_Seen]:
        """The turns, with about ``lines`` lines of what was seen before the last; None = all.

        What was seen last has as many as `make_context` was told, if it was.
        """
        if lines is None:
            return self._seen
        *before, last = self._seen or [None]
        wanted = [(seen, lines) for seen in before]
        wanted += [(last, self._lines)] if last else []
        shorten = self._prompts.texts.shorten
        return [
            dataclasses.replace(seen, text=shorten(seen.text, seen.action, n)) if n else seen
            for seen, n in wanted
        ]

    def held(self, ids: list[int]) -> int:
        """None: sessions change with what is left out."""
        return 0


def make_context(
    kind: str, recent_turns: int, prompts, task: Task, skill_text: str, extraction_lines: int = 0
):
    """The context of one episode; ``kind`` as in ``config.rollout.context``.

    ``extraction_lines``: about how many lines of what a turn read its extraction shows, of a recent context
    (0 = all that fit).
    """
    if kind == "full":
        return FullContext(prompts, task, skill_text)
    if kind == "recent":
        return RecentContext(prompts, task, skill_text, recent_turns, extraction_lines)
    raise ValueError(f"context must be full or recent, got {kind!r}")
