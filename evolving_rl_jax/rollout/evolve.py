"""One iteration of experience: source episode -> extraction -> retrieval -> skill evaluation.

The stages of different sources overlap: a source that has ended goes on to extraction and evaluation
while others still play.  Every episode has a fixed key in its iteration, so what it samples depends on
(seed, iteration, key, turn) and not on scheduling.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from evolving_rl_jax.envs import benchmark
from evolving_rl_jax.rollout.attempts import Attempts, play_attempts
from evolving_rl_jax.rollout.episode import Driver
from evolving_rl_jax.skills.audit import AuditResult, AuditRules, audit
from evolving_rl_jax.skills.records import SkillRecord, belonging
from evolving_rl_jax.skills.schema import Skill, parse_skill, text_to_audit
from evolving_rl_jax.types import ENV_ERROR, TIMEOUT, TRUNCATED, Episode, Sample, Task


@dataclasses.dataclass
class Candidate:
    """One extracted skill and what came of it.  ``skill`` is None when it could not be parsed."""

    raw: str
    sample: Sample
    skill: Skill | None
    reason: str
    valid: bool
    text: str = ""  # what the solver reads
    audit: AuditResult | None = None

    def record(self, id: str, source: Task, **facts) -> SkillRecord:
        """The skill with its provenance, for a bank.

        Args:
          id: of the record, and of the parent episode where ``facts`` has no other.
          source: the task of that episode.
          facts: further fields of the record.
        """
        return SkillRecord(
            id=id,
            source_task_id=source.id,
            source_task_hash=source.content_hash,
            source_text=source.text,
            skill=self.skill.to_dict() if self.skill else None,
            reason=self.reason,
            audit=self.audit._asdict() if self.audit else None,
            **{"episode_id": id, "meta": belonging(source), **facts},
        )


@dataclasses.dataclass
class Source:
    """Everything that one source task led to.

    Attributes:
      task: of the source.
      episode: the source episode; of several the furthest.
      candidates: the N skills.
      retrieved: the K tasks.
      episodes: with the skills, by (k, n, r).
      attempts: the S source episodes in the order of their keys, where S > 1.
      beside: plays of the retrieved tasks apart from the skills', by (kind, k, i), see `rollout.beside`.
      guided_by: k -> (id, cosine) of the skills of the bank that guided those of them.
    """

    task: Task
    episode: Episode | None = None
    candidates: list[Candidate] = dataclasses.field(default_factory=list)
    retrieved: list[Task] = dataclasses.field(default_factory=list)
    episodes: dict[tuple[int, int, int], Episode] = dataclasses.field(default_factory=dict)
    attempts: list[Episode] = dataclasses.field(default_factory=list)
    beside: dict[tuple[str, int, int], Episode] = dataclasses.field(default_factory=dict)
    guided_by: dict[int, list[tuple[str, float]]] = dataclasses.field(default_factory=dict)

    @property
    def played(self) -> list[Episode]:
        """The source episodes; none in the arm ``grpo``."""
        return self.attempts or ([] if self.episode is None else [self.episode])


@dataclasses.dataclass
class Experience:
    """One iteration: the sources and the arrays that the advantages are computed from.

    The optional ones are those of `types.TokenBatch`: of steps where the environment scores them, and of
    source episodes where these are trained on.
    """

    sources: list[Source]
    wins: np.ndarray  # [G, K, N, R]
    episode_mask: np.ndarray  # [G, K, N, R]
    skill_valid: np.ndarray  # [G, N]
    scores: np.ndarray | None = None  # [G, K, N, R]
    step_rewards: np.ndarray | None = None  # [G, K, N, R, S]
    step_mask: np.ndarray | None = None  # [G, K, N, R, S]
    source_wins: np.ndarray | None = None  # [G, E]
    source_mask: np.ndarray | None = None  # [G, E]
    source_step_rewards: np.ndarray | None = None  # [G, E, S]
    source_step_mask: np.ndarray | None = None  # [G, E, S]

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that there are, by name; the first axis of each is G."""
        names = [f.name for f in dataclasses.fields(self)[1:]]
        return {n: getattr(self, n) for n in names if getattr(self, n) is not None}


@dataclasses.dataclass(frozen=True)
class StepScoring:
    """How an environment that scores every step is learned from.

    Attributes:
      max_steps: S, the most steps of an episode.
      score: what an episode counts for the reward of its skill: ``correct_steps``, or
        ``share_of_steps``, the same over the steps that the task has.
    """

    max_steps: int
    score: str

    @classmethod
    def from_config(cls, config) -> StepScoring | None:
        """What the configuration asks for; None where the environment scores episodes only."""
        if not benchmark(config.env.name).scores_steps:
            return None
        return cls(config.rollout.max_steps, config.algorithm.extractor_score)

    def of(self, episode: Episode) -> float:
        """The score of an episode."""
        correct = float(sum(r > 0 for r in episode.rewards))
        return correct if self.score == "correct_steps" else correct / episode.task.step_limit


class Evolver:
    """Runs the four stages for a list of source tasks.

    Args:
      driver: plays episodes.
      retriever: ``retrieve(task, k)``, never the source itself; unused where the retrieved tasks are given, and by the
        ``grpo`` arm.
      prompts: to render a skill for the solver.
      rollout: ``config.rollout``.
      stop: see `Driver.run`; for what is unfinished then see `settle`.
      scoring: of steps, in environments that score them.
      rules: further audits of a skill; None = its language and length alone.
      fit: cuts a skill to what the prompt may hold.
      beside: starts further plays of the retrieved tasks, (driver, g, source), see `rollout.beside`.
    """

    def __init__(
        self,
        driver: Driver,
        retriever,
        prompts,
        rollout,
        stop: Callable[[], str] | None = None,
        scoring: StepScoring | None = None,
        rules: AuditRules | None = None,
        fit: Callable[[str], str] = str,
        beside: Callable[[Driver, int, Source], None] | None = None,
    ):
        self.driver, self.retriever, self.prompts = driver, retriever, prompts
        self.stop, self.scoring = stop, scoring
        self.rules, self.fit, self.beside = rules, fit, beside
        self.shape = (rollout.num_retrieved, rollout.num_skills, rollout.num_repeats)
        self.num_attempts = rollout.num_source_episodes
        self.train_sources = rollout.train_sources
        self.evaluate_invalid = rollout.evaluate_invalid_skills
        self.max_chars = rollout.max_skill_chars

    def collect(
        self,
        tasks: list[Task],
        numbers: Sequence[int] | None = None,
        retrieved: Sequence[list[Task]] | None = None,
    ) -> Experience:
        """Source episodes, N skills each, and K x N x R evaluations; returns when all have ended.

        Args:
          tasks: of the sources.
          numbers: of the sources in the iteration, which their sampling is keyed by; default 0, 1,
            ...  A host that plays some of the sources passes theirs.
          retrieved: the K tasks of each source; None = those that the retriever finds most similar.
        """
        sources = [Source(t) for t in tasks]
        found = [None] * len(tasks) if retrieved is None else retrieved
        for g, source, chosen in zip(numbers or range(len(tasks)), sources, found, strict=True):
            done = self._after_source(g, source, chosen)
            play_attempts(self.driver, source.task, g, self.num_attempts, done)
        self.driver.run(stop=self.stop)
        experience = self._experience(sources)
        if self.train_sources:
            add_sources(experience, self.num_attempts, self.scoring)
        return experience

    def collect_groups(self, tasks: list[Task], numbers: Sequence[int] | None = None) -> Experience:
        """The ``grpo`` arm: G x K tasks, each played N x R times without a skill; see `collect`."""
        k_n_r = list(itertools.product(*map(range, self.shape)))
        num_k = self.shape[0]
        sources = []
        for i, g in enumerate(numbers or range(len(tasks) // num_k)):
            source = Source(tasks[i * num_k], retrieved=tasks[i * num_k : (i + 1) * num_k])
            sources.append(source)
            for k, n, r in k_n_r:
                self._play(g, source, k, n, r, "")
            if self.beside:
                self.beside(self.driver, g, source)
        self.driver.run(stop=self.stop)
        return self._experience(sources)

    # -- stages ----------------------------------------------------------------------------------

    def _after_source(self, g: int, source: Source, chosen: list[Task] | None):
        def done(attempts: Attempts) -> None:
            source.episode = attempts.best
            if self.num_attempts > 1:
                source.attempts = attempts.episodes
            # One that failed, was stopped, or was never played: no skill can follow, the masks stay 0.
            if attempts.readable:
                source.candidates = [None] * self.shape[1]
                keys = [self._skill_key(g, n) for n in range(self.shape[1])]
                if chosen is None:
                    source.retrieved = self.retriever.retrieve(source.task, self.shape[0])
                else:
                    source.retrieved = chosen
                if self.beside:
                    self.beside(self.driver, g, source)
                attempts.extract(keys, self._after_skill(g, source, attempts.read))
            attempts.release()

        return done

    def _after_skill(self, g: int, source: Source, read: list[Episode]):
        def done(n: int, raw: str, sample: Sample | None) -> None:
            if sample is None:
                return  # no room for a skill, neither for this one nor for the others
            candidate = source.candidates[n] = make_candidate(
                raw, sample, self.prompts, self.max_chars, self.rules, *read
            )
            if candidate.valid or (self.evaluate_invalid and candidate.text):
                for k, r in itertools.product(range(self.shape[0]), range(self.shape[2])):
                    self._play(g, source, k, n, r, self.fit(candidate.text))

        return done

    def _play(self, g: int, source: Source, k: int, n: int, r: int, skill_text: str) -> None:
        def done(episode: Episode, _handle) -> None:
            source.episodes[k, n, r] = episode

        self.driver.play(self._episode_key(g, k, n, r), source.retrieved[k], skill_text, done)

    # -- keys: sources, then skills, then evaluations ---------------------------------------------

    def _skill_key(self, g: int, n: int) -> int:
        return 1_000_000 + g * self.shape[1] + n

    def _episode_key(self, g: int, k: int, n: int, r: int) -> int:
        num_k, num_n, num_r = self.shape
        return 2_000_000 + ((g * num_k + k) * num_n + n) * num_r + r

    def _experience(self, sources: list[Source]) -> Experience:
        num_k, num_n, num_r = self.shape
        wins = np.zeros((len(sources), num_k, num_n, num_r), np.float32)
        mask = np.zeros_like(wins)
        valid = np.zeros((len(sources), num_n), np.float32)
        settle([e for s in sources for e in s.played])
        settle([e for s in sources for e in s.episodes.values()])
        settle([e for s in sources for e in s.beside.values()])
        for g, source in enumerate(sources):
            if None in source.candidates:  # no room for them, or not all were written in time
                source.candidates, source.episodes = [], {}
            for n, candidate in enumerate(source.candidates):
                valid[g, n] = float(candidate.valid)
            for (k, n, r), episode in source.episodes.items():
                wins[g, k, n, r] = episode.reward if episode.scored else 0.0
                mask[g, k, n, r] = float(episode.scored)
        experience = Experience(sources, wins, mask, valid)
        if self.scoring:
            add_steps(experience, self.scoring)
        return experience


def settle(episodes: Sequence[Episode]) -> None:
    """Decides which episodes of one kind count, by nothing that their outcomes decide.

    Wins end early, so leaving out what a deadline cuts off would leave out losses.  An episode counts
    when it had at least as much time as the longest that came to an end: if it was cut off all the same,
    it lost, as one that runs out of steps does.  Those that began later are left out, whether they
    ended or not; so are all that were cut off where none came to an end, which says nothing of how long
    one takes.  An episode whose first prompt did not fit was never played, and is left out too.

    Args:
      episodes: all that were asked for; the status of some is changed.
    """
    for episode in episodes:
        if episode.scored and not episode.turns:
            episode.status = ENV_ERROR
            episode.error = "its first prompt does not fit config.rollout.max_length"
    cut = [e for e in episodes if e.cut]
    ended = [e for e in episodes if e.scored and not e.cut]
    if not cut or not ended:
        return
    end, longest = cut[0].ended, max(e.ended - e.began for e in ended)
    for episode in cut + ended:
        if not episode.turns or end - episode.began < longest:
            episode.status, episode.error = TIMEOUT, episode.error or cut[0].error
        elif episode.cut:
            episode.status = TRUNCATED


def add_steps(experience: Experience, scoring: StepScoring) -> None:
    """Fills in the arrays of steps; a turn that nothing answered (it was cut off) has failed.

    One whose page did not fit, so that nothing was sampled, has not been taken.
    """
    shape = experience.wins.shape
    scores = np.zeros(shape, np.float32)
    rewards = np.zeros((*shape, scoring.max_steps), np.float32)
    taken = np.zeros_like(rewards)
    for g, source in enumerate(experience.sources):
        for (k, n, r), episode in source.episodes.items():
            if episode.scored:
                at = g, k, n, r
                scores[at] = scoring.of(episode)
                experience.wins[at] = float(episode.won)
                rewards[at][: len(episode.rewards)] = episode.rewards
                taken[at][_read(episode)] = 1.0
    experience.scores, experience.step_rewards, experience.step_mask = scores, rewards, taken


def _read(episode: Episode) -> list[int]:
    """The turns that the policy answered; each is a sequence of its own where steps are scored."""
    return [sample.step for sample in episode.samples]


def add_sources(experience: Experience, num_attempts: int, scoring: StepScoring | None) -> None:
    """Fills in the arrays of the source episodes, of which the S of one task are a group to learn from."""
    shape = len(experience.sources), num_attempts
    wins, mask = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for g, source in enumerate(experience.sources):
        for i, episode in enumerate(source.attempts):
            mask[g, i] = float(episode.scored)
            wins[g, i] = (episode.won if scoring else episode.reward) if episode.scored else 0.0
    experience.source_wins, experience.source_mask = wins, mask
    if scoring:
        rewards = np.zeros((*shape, scoring.max_steps), np.float32)
        taken = np.zeros_like(rewards)
        for g, source in enumerate(experience.sources):
            for i, episode in enumerate(source.attempts):
                if episode.scored:
                    rewards[g, i, : len(episode.rewards)] = episode.rewards
                    taken[g, i][_read(episode)] = 1.0
        experience.source_step_rewards, experience.source_step_mask = rewards, taken


def make_candidate(
    raw: str,
    sample: Sample,
    prompts,
    max_chars: int,
    rules: AuditRules | None = None,
    *read: Episode,
) -> Candidate:
    """Parses and audits an extraction; a skill that fails either is invalid and says why.

    Args:
      raw: what the policy wrote.
      sample: its tokens.
      prompts: to render the skill for the solver.
      max_chars: longest skill, where ``rules`` are not given.
      rules: the audits; None = its language and length alone.
      read: the episodes that it was extracted from, of one task; needed with ``rules``.
    """
    skill, reason = parse_skill(raw)
    if skill is None:
        return Candidate(raw, sample, None, reason, False)
    # The decoded skill is audited, not the JSON: escapes would hide characters from the audit.
    said = text_to_audit(skill)
    if rules is None:
        result = audit(said, max_chars=max_chars)
    else:
        result = rules.apply(said, read[-1].task, [o for e in read for o in e.observations])
    text = prompts.render_skill(skill)
    return Candidate(raw, sample, skill, "; ".join(result.reasons), result.passed, text, result)
