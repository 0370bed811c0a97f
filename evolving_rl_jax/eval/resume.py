"""A panel that was stopped goes on: what was played is answered from a journal, the rest is played.

`KeptDriver` stands before a `rollout.episode.Driver` and has its ``play``, ``extract``, ``release`` and ``run``.
Whatever a driver plays depends on its key alone, so a panel that goes on gives the same result as one
that was never stopped.  Tokens are not kept, results need none; of games no text is kept either, of source
episodes what their skill's audit reads.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evolving_rl_jax.eval.fingerprint import fingerprint
from evolving_rl_jax.eval.journal import Journal, play_settings
from evolving_rl_jax.rollout.episode import Driver
from evolving_rl_jax.types import Episode, Task, Turn

_NO_TURN = Turn("", "", "", True)


@dataclasses.dataclass
class _Kept:
    """Stands for the session of an attempt at a source that was played before, with the source's skills."""

    skills: list[str]


class KeptDriver:
    """Answers from a journal what it holds; has the rest played, and keeps it there.

    Plays that the infrastructure failed are not kept: who goes on plays them again.

    Args:
      driver: that plays.
      journal: of earlier plays and of those to come.
      seed: of the panel.

    Attributes:
      kept: episodes that the journal answered.
    """

    def __init__(self, driver: Driver, journal: Journal, seed: int):
        self.kept = 0
        self._driver, self._journal, self._seed = driver, journal, seed
        self._sources: dict[int, tuple[str, Episode]] = {}  # by the handle of their session
        self._stopping = False

    def play(
        self, key: int, task: Task, skill_text: str, on_done, *, keep_session: bool = False
    ) -> None:
        """As `Driver.play`; what was played before ends at once."""
        name = str(key)
        record = self._journal.plays.get((task.id, self._seed, name))
        if record is not None:
            self.kept += 1
            handle = _Kept(record["skills"]) if keep_session else None
            on_done(_unpack(task, skill_text, record), handle)
            return

        def done(episode: Episode, handle) -> None:
            if keep_session and handle is not None:
                self._sources[id(handle)] = name, episode
            elif not keep_session:
                self._keep(name, episode, {"steps": len(episode.turns)})
            on_done(episode, handle)

        self._driver.play(key, task, skill_text, done, keep_session=keep_session)

    def extract(
        self,
        handle,
        won: bool,
        keys: list[int],
        on_done,
        *,
        before: Sequence[tuple[Any, bool]] = (),
    ) -> None:
        """As `Driver.extract`; a source is kept, with all attempts at it, once all of its skills are written.

        An attempt that the infrastructure failed is played again; its source keeps the skills of the others.
        """
        handles = [h for h, _ in before] + [handle]
        kept = next((h for h in handles if isinstance(h, _Kept)), None)
        if kept is not None:
            for h in handles:
                self._sources.pop(id(h), None)
            for i, raw in enumerate(kept.skills):
                on_done(i, raw, None)
            return
        sources = [self._sources.pop(id(h)) for h in handles]
        written: dict[int, str] = {}

        def extracted(i: int, raw: str, sample) -> None:
            written[i] = raw
            if len(written) == len(keys):
                skills = [written[j] for j in range(len(keys))]
                for name, episode in sources:
                    self._keep_source(name, episode, skills)
            on_done(i, raw, sample)

        more = {"before": before} if before else {}
        self._driver.extract(handle, won, keys, extracted, **more)

    def _keep_source(self, name: str, episode: Episode, skills: list[str]) -> None:
        if not episode.task.meta.get("sealed"):
            read = {"turns": [dataclasses.astuple(t) for t in episode.turns]}
            read |= {"last_observation": episode.last_observation}
            self._keep(name, episode, {**read, "skills": skills})

    def release(self, handle) -> None:
        """As `Driver.release`."""
        if not isinstance(handle, _Kept):
            self._driver.release(handle)

    def run(
        self,
        progress: Callable[[int], None] | None = None,
        stop: Callable[[], str] | None = None,
    ) -> None:
        """As `Driver.run`; what a stop cuts off is not kept."""

        def asked() -> str:
            reason = stop()
            self._stopping = self._stopping or bool(reason)
            return reason

        report = (lambda n: progress(self.kept + n)) if progress else None
        self._driver.run(report, asked if stop else None)

    def _keep(self, name: str, episode: Episode, more: Mapping[str, Any]) -> None:
        if not episode.scored or self._stopping:
            return
        fields = ("won", "status", "reward", "error", "rewards", "infos")
        facts = {field: getattr(episode, field) for field in fields} | dict(more)
        where = {"id": episode.task.id, "seed": self._seed, "condition": name}
        self._journal.add(where | facts | {"won": bool(episode.won)})


def _unpack(task: Task, skill_text: str, record: Mapping[str, Any]) -> Episode:
    """A kept episode, without its tokens; of a game without its texts too."""
    turns = (
        [Turn(*t) for t in record["turns"]] if "turns" in record else [_NO_TURN] * record["steps"]
    )
    return Episode(
        task=task, turns=turns, samples=[], skill_text=skill_text,
        last_observation=record.get("last_observation", ""),
        **{key: record[key] for key in ("won", "status", "reward", "error", "rewards", "infos")},
    )  # fmt: skip


# -- the files -------------------------------------------------------------------------------------


def panel_journal(parts, engine, panel, result: pathlib.Path, facts: Mapping[str, Any]) -> Journal:
    """The journal of a panel next to the file of its result; each host has its own.

    What does not belong to this panel as it is played now (another configuration, other weights, a file that
    is no journal) is left out, which is said, and the panel is played from its beginning.

    Args:
      parts: of the run; all hosts call this.
      engine: holds the weights that play.
      panel: the games.
      result: the file of the result.
      facts: further settings.
    """
    settings = {
        **facts,
        "weights": fingerprint(engine.params),
        "game_list_hash": panel.game_list_hash,
        "pool_hash": panel.pool_hash,
        **play_settings(parts.config),
    }
    number = "" if parts.hosts.first else f"-{parts.hosts.index}"
    own = result.with_suffix(f".plays{number}.jsonl")
    try:
        journal = Journal(own, settings, durable=False)
    except ValueError as error:
        parts.say(f"{result.stem} is played from its beginning: {error}")
        own.unlink()
        journal = Journal(own, settings, durable=False)
    for path in _files(result):
        if path != own:  # of another host, perhaps of more hosts than there are now
            journal.read_along(path)
    if journal.plays:
        parts.say(f"{result.stem}: {len(journal.plays)} plays are kept, going on from there")
    return journal


def forget(result: pathlib.Path) -> None:
    """Removes the journals of a panel, once its result is written."""
    for path in _files(result):
        path.unlink(missing_ok=True)


def _files(result: pathlib.Path) -> list[pathlib.Path]:
    name = result.with_suffix("").name
    return sorted(p for p in result.parent.glob("*.jsonl") if p.name.startswith(f"{name}.plays"))
