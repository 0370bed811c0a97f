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
    """Everything that one source task led to; ``episodes`` is keyed by (k, n, r)."""

    task: Task
    episode: Episode | None = None
    candidates: list[Candidate] = dataclasses.field(default_factory=list)
    retrieved: list[Task] = dataclasses.field(default_factory=list)
    episodes: dict[tuple[int, int, int], Episode] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Experience:
    """One iteration: the sources and the arrays that the advantages are computed from.

    The last three are those of `types.TokenBatch`; None where the environment scores no steps.
    """

    sources: list[Source]
    wins: np.ndarray  # [G, K, N, R]
    episode_mask: np.ndarray  # [G, K, N, R]
    skill_valid: np.ndarray  # [G, N]
    scores: np.ndarray | None = None  # [G, K, N, R]
    step_rewards: np.ndarray | None = None  # [G, K, N, R, S]
    step_mask: np.ndarray | None = None  # [G, K, N, R, S]

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
    ):
        self.driver, self.retriever, self.prompts = driver, retriever, prompts
        self.stop, self.scoring = stop, scoring
        self.rules, self.fit = rules, fit
        self.shape = (rollout.num_retrieved, rollout.num_skills, rollout.num_repeats)
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
            self.driver.play(g, source.task, "", done, keep_session=True)
        self.driver.run(stop=self.stop)
        return self._experience(sources)

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
        self.driver.run(stop=self.stop)
        return self._experience(sources)

    # -- stages ----------------------------------------------------------------------------------

    def _after_source(self, g: int, source: Source, chosen: list[Task] | None):
        def done(episode: Episode, handle) -> None:
            source.episode = episode
            if handle is None:
                return  # it failed, or was stopped: no skill can follow, the masks stay 0
            if not episode.turns:
                self.driver.release(handle)
                return  # nothing was played that a skill could be of
            source.candidates = [None] * self.shape[1]
            keys = [self._skill_key(g, n) for n in range(self.shape[1])]
            if chosen is None:
                source.retrieved = self.retriever.retrieve(source.task, self.shape[0])
            else:
                source.retrieved = chosen
            self.driver.extract(handle, episode.won, keys, self._after_skill(g, source))
            self.driver.release(handle)

        return done

    def _after_skill(self, g: int, source: Source):
        def done(n: int, raw: str, sample: Sample | None) -> None:
            if sample is None:
                return  # no room for a skill, neither for this one nor for the others
            candidate = source.candidates[n] = make_candidate(
                raw, sample, self.prompts, self.max_chars, self.rules, source.episode
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
        settle([s.episode for s in sources if s.episode is not None])
        settle([e for s in sources for e in s.episodes.values()])
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
    """Fills in the arrays of steps; a turn that nothing answered (it was cut off) has failed."""
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
                taken[at][: len(episode.turns)] = 1.0
    experience.scores, experience.step_rewards, experience.step_mask = scores, rewards, taken


def make_candidate(
    raw: str,
    sample: Sample,
    prompts,
    max_chars: int,
    rules: AuditRules | None = None,
    episode: Episode | None = None,
) -> Candidate:
    """Parses and audits an extraction; a skill that fails either is invalid and says why.

    Args:
      raw: what the policy wrote.
      sample: its tokens.
      prompts: to render the skill for the solver.
      max_chars: longest skill, where ``rules`` are not given.
      rules: the audits; None = its language and length alone.
      episode: that it was extracted from; needed with ``rules``.
    """
    skill, reason = parse_skill(raw)
    if skill is None:
        return Candidate(raw, sample, None, reason, False)
    # The decoded skill is audited, not the JSON: escapes would hide characters from the audit.
    said = text_to_audit(skill)
    if rules is None:
        result = audit(said, max_chars=max_chars)
    else:
        result = rules.apply(said, episode.task, episode.observations)
    text = prompts.render_skill(skill)
    return Candidate(raw, sample, skill, "; ".join(result.reasons), result.passed, text, result)
