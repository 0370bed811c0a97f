"""The fixed panel: every game of a split exactly once, with and without skills.

Conditions, all played by the same policy at the same temperature:

* ``none``: no skill in the prompt;
* ``own``: the policy plays the most similar game of the declared source pool (as often as
  ``config.rollout.num_source_episodes`` says), extracts one skill from that, and plays the panel game with it;
* ``oracle``: a skill that states the decisive facts;
* ``misleading``: a skill that states wrong ones.

Sampling is keyed by the game, the condition and the seed, so two policies are compared on the same
draws.  In float32 the numbers do not depend on slots or batch size; in bfloat16 a row depends on what
shares its call, and ``config.eval.independent_rows`` is what takes that away.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping, Sequence

from evolving_rl_jax.data.tasks import list_hash
from evolving_rl_jax.eval.games import PanelGame, gather_panel
from evolving_rl_jax.eval.results import leak_report
from evolving_rl_jax.record.figures import SourceFigures
from evolving_rl_jax.rollout.attempts import Attempts, play_attempts
from evolving_rl_jax.rollout.episode import Driver
from evolving_rl_jax.rollout.evolve import make_candidate
from evolving_rl_jax.rollout.known_facts import given_skill
from evolving_rl_jax.run.hosts import ALONE, Hosts
from evolving_rl_jax.skills.audit import AuditRules
from evolving_rl_jax.skills.retrieval import Retriever
from evolving_rl_jax.skills.rotation import Lots
from evolving_rl_jax.types import Episode, Task

# Panels sample under "iterations" far above those of training.
PANEL_ITERATION = 1_000_000_000
_CONDITION_KEY = {"none": 0, "own": 1, "oracle": 2, "misleading": 3}


class Panel:
    """Plays a fixed list of games once under each condition.

    Args:
      tasks: the games; order does not matter, they are sorted by id.
      retriever: over the pool that ``own`` skills may come from.  Games of the panel, and copies of
        them, are never taken from it.
      prompts: the policy's prompt style.
      max_chars: longest accepted skill.
      rules: further audits of ``own`` skills; None = those of training.
      fit: cuts a skill text to what the prompt may hold; None = no limit.
      training_tasks: the training split, searched for copies of panel games for the leak report.
      attempts: at each source task, which its skill is extracted from.
      protocols: of web tasks: how the environment plays them, then others under which every game
        is played too, with the same skills; () where an environment has one protocol only.
      split_games: games of the splits that the panel is a sample of; None = it is all of them.
    """

    def __init__(
        self,
        tasks: list[Task],
        retriever: Retriever | None,
        prompts,
        max_chars: int,
        *,
        rules: AuditRules | None = None,
        fit: Callable[[str], str] | None = None,
        attempts: int = 1,
        training_tasks: Sequence[Task] = (),
        protocols: tuple[str, ...] = (),
        split_games: int | None = None,
    ):
        self.tasks = sorted(tasks, key=lambda t: t.id)
        self.retriever, self.prompts, self.max_chars = retriever, prompts, max_chars
        self.rules, self.fit, self.attempts = rules, fit or str, attempts
        self.training_tasks, self.protocols = training_tasks, protocols
        self.split_games = len(self.tasks) if split_games is None else split_games
        self._ids = {t.id for t in self.tasks}
        self._hashes = {t.content_hash for t in self.tasks}

    @property
    def game_list_hash(self) -> str:
        """Hash of the sorted content hashes: equal if and only if the panel is the same."""
        return list_hash(self.tasks)

    @property
    def pool_hash(self) -> str:
        """The same of where ``own`` skills may come from."""
        return list_hash(self.retriever.tasks if self.retriever else ())

    def play(
        self,
        driver: Driver,
        conditions: tuple[str, ...],
        progress: Callable[[int], None] | None = None,
        seed: int | None = None,
        *,
        hosts: Hosts = ALONE,
        stop: Callable[[], str] | None = None,
    ) -> tuple[list[PanelGame], dict]:
        """Returns the games with their episodes, and figures on the source episodes.

        Args:
          driver: whose iteration is ``PANEL_ITERATION + seed``.
          conditions: out of those of the module.
          progress: called with the number of finished episodes.
          seed: noted in the games.
          hosts: each plays its share, and all get the whole result.
          stop: see `Driver.run`; after a stop the games are incomplete.
        """
        games = [PanelGame(t, seed=seed) for t in self.tasks]
        for i, game in hosts.share(list(enumerate(games))):
            for condition in conditions:
                if condition != "own":
                    skill = given_skill(condition, game.task, i, self.prompts)
                    self._play_game(driver, game, i, condition, skill)
        sources: list[SourceFigures] = []
        if "own" in conditions:
            self._play_sources(driver, games, sources, hosts)
        driver.run(progress, stop)
        total = functools.reduce(operator.add, sources, SourceFigures())
        return games, gather_panel(hosts, games, total).figures()

    def play_given(
        self,
        driver: Driver,
        skills: Mapping[str, str],
        progress: Callable[[int], None] | None = None,
        seed: int | None = None,
    ) -> list[PanelGame]:
        """Plays the condition ``own`` with skills from elsewhere, on the draws of :meth:`play`.

        Args:
          driver: whose iteration is ``PANEL_ITERATION + seed``.
          skills: game id -> text for the prompt; games without an entry are left out.
          progress: called with the number of finished episodes.
          seed: noted in the games.
        """
        games = []
        for i, task in enumerate(self.tasks):
            if task.id in skills:
                games.append(PanelGame(task, seed=seed))
                self._play_game(driver, games[-1], i, "own", skills[task.id])
        driver.run(progress)
        return games

    def leaks(self, games: list[PanelGame]) -> dict:
        """What was retrieved, and what could have leaked; see `results.leak_report`."""
        pool = self.retriever.tasks if self.retriever else ()
        return leak_report(games, pool, self.training_tasks)

    def _play_game(
        self, driver: Driver, game: PanelGame, i: int, condition: str, skill: str
    ) -> None:
        def done(episode: Episode, _handle) -> None:
            game.episodes[condition] = episode

        key = _CONDITION_KEY[condition] * 1_000_000 + i
        driver.play(key, game.task, skill, done)
        for p, protocol in enumerate(self.protocols[1:], 1):
            meta = {**game.task.meta, "protocol": protocol}
            played = game.others.setdefault(protocol, {})
            driver.play(
                key + p * 10_000_000,
                dataclasses.replace(game.task, meta=meta),
                skill,
                lambda episode, _handle, played=played: played.update({condition: episode}),
            )

    def _play_sources(
        self, driver: Driver, games: list[PanelGame], sources: list[SourceFigures], hosts: Hosts
    ) -> None:
        """Plays each needed source once; its one skill serves every panel game that retrieved it."""
        users: dict[str, list[int]] = {}
        by_id: dict[str, Task] = {}
        lots = Lots(PANEL_ITERATION)  # the same for every policy and seed
        for i, game in enumerate(games):
            ((game.source, game.similarity),) = self.retriever.retrieve_scored(
                game.task, 1, exclude_ids=self._ids, exclude_hashes=self._hashes, lots=lots
            )
            users.setdefault(game.source.id, []).append(i)
            by_id[game.source.id] = game.source
        for s, source_id in hosts.share(list(enumerate(sorted(users)))):
            done = self._after_source(driver, games, users[source_id], s, sources)
            play_attempts(driver, by_id[source_id], 8_000_000 + s, self.attempts, done)

    def _after_source(self, driver, games, users: list[int], s: int, sources: list[SourceFigures]):
        def start(skill: str) -> None:
            for i in users:
                self._play_game(driver, games[i], i, "own", skill)

        def done(attempts: Attempts) -> None:
            for i in users:
                games[i].source_episode = attempts.best
            if not attempts.readable:
                sources.append(SourceFigures.of(attempts.episodes, ()))
                attempts.release()
                start("")  # the game is played all the same, but does not count
                return

            def extracted(_i: int, raw: str, sample) -> None:
                candidate = make_candidate(
                    raw, sample, self.prompts, self.max_chars, self.rules, *attempts.read
                )
                sources.append(SourceFigures.of(attempts.episodes, [candidate]))
                for i in users:
                    games[i].candidate = candidate
                start(self.fit(candidate.text) if candidate.valid else "")

            attempts.extract([9_000_000 + s], extracted)
            attempts.release()

        return done
