"""What is written down of an iteration: figures of its rollout, and records of the skill bank."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evolving_rl_jax.data.shares import retrieved_shares
from evolving_rl_jax.generate import Stats
from evolving_rl_jax.rollout import known_facts
from evolving_rl_jax.rollout.episode import Driver
from evolving_rl_jax.rollout.evolve import Candidate, Experience, Source, StepScoring
from evolving_rl_jax.skills.bank import SkillRecord
from evolving_rl_jax.types import Episode
from evolving_rl_jax.update.step import CUMULATIVE, STEP_COUNTS

# Where the engine found prompt tokens in its cache, by stage; an extraction is a single turn.
REUSED = (
    ("turn", "source"),
    ("turn", "evaluation"),
    ("prefix", "source"),
    ("prefix", "extraction"),
    ("prefix", "evaluation"),
)


def bank_records(
    experience: Experience,
    iteration: int,
    policy_step: int,
    scoring: StepScoring | None = None,
) -> list[SkillRecord]:
    """One record of the bank for each extraction; ``policy_step`` counts optimizer steps."""
    records = []
    for g, source in enumerate(experience.sources):
        for n, candidate in enumerate(source.candidates):
            played = [e for (_, m, _), e in sorted(source.episodes.items()) if m == n and e.scored]
            records.append(
                candidate.record(
                    f"it{iteration:05d}-g{g:03d}-n{n}",
                    source.task,
                    iteration=iteration,
                    episode_id=f"it{iteration:05d}-g{g:03d}",
                    policy_step=policy_step,
                    reward=_skill_reward(candidate, played, scoring),
                    uses=len(played),
                    wins=sum(float(e.won) for e in played),
                )
            )
    return records


def _skill_reward(candidate, played: list[Episode], scoring: StepScoring | None) -> float | None:
    """The extractor's reward: 0 for an invalid skill, None when no episode could be scored."""
    if not candidate.valid:
        return 0.0
    scores = [scoring.of(e) if scoring else e.reward for e in played]
    return sum(scores) / len(scores) if scores else None


@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean that knows of how many things it is, so that the mean of two groups is that of both."""

    total: float = 0.0
    count: int = 0

    @classmethod
    def of(cls, values: Iterable[float]) -> Mean:
        values = list(values)
        return cls(sum(values), len(values))

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    def figures(self, name: str, count: str) -> dict[str, float]:
        """The mean and its count by these names; of nothing there is no mean."""
        return {count: self.count} | ({name: self.total / self.count} if self.count else {})


@dataclasses.dataclass(frozen=True)
class SourceFigures:
    """What source episodes and the skills written after them gave; a sum is that of both groups.

    Attributes:
      failed: source episodes that the infrastructure failed; nothing else here counts them.
      success: share of the others that were won.
      skill_valid: share of the extractions that parsed and passed the audits.
      fact_seen: mean share of the facts of their task that source episodes saw, where tasks state any.
      fact_stated: mean share of the facts that its source episode saw that a skill states rightly, of
        the skills after an episode that saw any; 0 for an invalid one.
    """

    failed: int = 0
    success: Mean = Mean()
    skill_valid: Mean = Mean()
    fact_seen: Mean = Mean()
    fact_stated: Mean = Mean()

    @classmethod
    def of(cls, attempts: Sequence[Episode], candidates: Sequence[Candidate]) -> SourceFigures:
        """Those of one source, played once or several times, and the skills written after it.

        Of several attempts at a task each counts in ``success``; what they saw, they saw together.
        """
        scored = [e for e in attempts if e.scored]
        failed = len(attempts) - len(scored)
        if not scored:
            return cls(failed=failed)
        seen = known_facts.share_seen(*scored)
        stated = (
            known_facts.share_stated(scored[0], c.text, *scored[1:]) / seen if c.valid else 0.0
            for c in (candidates if seen else ())
        )
        return cls(
            failed=failed,
            success=Mean.of(e.won for e in scored),
            skill_valid=Mean.of(c.valid for c in candidates),
            fact_seen=Mean.of([] if seen is None else [seen]),
            fact_stated=Mean.of(stated),
        )

    def __add__(self, other: SourceFigures) -> SourceFigures:
        names = [f.name for f in dataclasses.fields(self)]
        return SourceFigures(*(getattr(self, n) + getattr(other, n) for n in names))

    def figures(self) -> dict[str, float]:
        """By the names of docs/metrics.md; those of facts only where tasks state any."""
        found = {
            "source_failures": self.failed,
            **self.success.figures("source_success", "sources"),
        }
        found |= self.skill_valid.figures("skill_valid", "extractions")
        if self.fact_seen.count:
            found |= self.fact_seen.figures("fact_seen", "fact_episodes")
            found |= self.fact_stated.figures("fact_stated_when_seen", "fact_skills")
        return found


# A mean of `SourceFigures.figures` -> its count.
SOURCE_MEANS = {
    "source_success": "sources",
    "skill_valid": "extractions",
    "fact_seen": "fact_episodes",
    "fact_stated_when_seen": "fact_skills",
}


def pooled(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Figures of several groups of sources -> those of all of them.

    Groups written down before every mean had its count stand there with their number of sources.
    """
    if len(figures) == 1:
        return dict(figures[0])
    total = {"source_failures": sum(f["source_failures"] for f in figures)}
    for name, count in SOURCE_MEANS.items():
        sizes = [f.get(count, f["sources"] if name in f else 0) for f in figures]
        if any(count in f or name in f for f in figures):
            total[count] = sum(sizes)
        if any(sizes):
            weighted = sum(f[name] * n for f, n in zip(figures, sizes, strict=True) if n)
            total[name] = weighted / sum(sizes)
    return total


def rollout_figures(experience: Experience) -> dict[str, float]:
    """The rollout's own figures; see docs/metrics.md.  A mean over nothing is left out."""
    sources = [s for s in experience.sources if s.episode is not None]
    episodes = [e for s in experience.sources for e in s.episodes.values()]
    scored = [e for e in episodes if e.scored]
    turns = [t for e in scored for t in e.turns]
    figures: dict[str, float] = {
        "rollout/scored_episodes": float(experience.episode_mask.sum()),
        "rollout/failed_episodes": float(len(episodes) - len(scored)),
    }
    if scored:
        figures |= _outcomes(experience)
        figures["rollout/turns"] = len(turns) / len(scored)
    figures |= Mean.of(t.valid for t in turns).figures(
        "rollout/valid_actions", "rollout/scored_turns"
    )
    if sources:
        found = (SourceFigures.of(s.played, s.candidates) for s in sources)
        total = functools.reduce(operator.add, found)
        figures |= {f"rollout/{name}": float(value) for name, value in total.figures().items()}
        figures |= _attempt_figures(sources)
    figures |= _skill_figures(sources)
    lengths = [int(c.sample.loss_mask.sum()) for s in sources for c in s.candidates]
    if lengths:
        figures["rollout/skill_tokens"] = sum(lengths) / len(lengths)
    scored_sources = [s for s in sources if s.episode.scored]
    alike = retrieved_shares((s.task, found) for s in scored_sources for found in s.retrieved)
    return figures | {f"retrieval/{name}": share for name, share in alike.items()}


def _attempt_figures(sources: Sequence[Source]) -> dict[str, float]:
    """Where sources are played several times: how often the furthest attempt won, and whether any differed."""
    several = [s for s in sources if s.attempts and s.episode.scored]
    if not several:
        return {}
    alike = [len({(e.won, e.score) for e in s.attempts if e.scored}) < 2 for s in several]
    return {
        "rollout/best_attempt_success": sum(bool(s.episode.won) for s in several) / len(several),
        "rollout/attempts_alike": sum(alike) / len(several),
    }


def _skill_figures(sources: Sequence[Source]) -> dict[str, float]:
    """What valid skills state and whether it is so, where tasks say what is; means over the skills."""
    judged: dict[str, list[float]] = {}
    for source in sources:
        for candidate in source.candidates if source.episode.scored else ():
            if candidate.valid:
                found = known_facts.judge_skill(source.episode, candidate.text, source.retrieved)
                for name, value in found.items():
                    judged.setdefault(name, []).append(value)
    return {f"skill/{name}": sum(v) / len(v) for name, v in sorted(judged.items())}


def _outcomes(experience: Experience) -> dict[str, float]:
    """Of the scored episodes, of which there is at least one."""
    scored = float(experience.episode_mask.sum())
    won = sum(e.won for s in experience.sources for e in s.episodes.values() if e.scored)
    paid = experience.wins[experience.episode_mask > 0]
    figures = {"rollout/win_rate": won / scored}
    if ((paid != 0) & (paid != 1)).any():  # the environment gives more than won and lost
        figures["rollout/reward"] = float(paid.sum()) / scored
    if experience.step_mask is not None:
        attempted, correct = experience.step_mask.sum(), (experience.step_rewards > 0).sum()
        if attempted:
            figures["rollout/action_accuracy"] = float(correct / attempted)
        figures["rollout/correct_steps"] = float(correct / scored)
    return figures


def update_figures(steps: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The metrics of an iteration's optimizer steps as one; see docs/metrics.md.

    The mean over the steps that a metric says something about; what is counted over the whole run is
    the last step's.  How the log-probabilities of trainer and engine agree is the first step's: before
    it, both hold the same weights.
    """
    figures: dict[str, float] = {}
    for name in steps[0]:
        chosen = [s for s in steps if name not in STEP_COUNTS or s[STEP_COUNTS[name]] > 0]
        if name in CUMULATIVE:
            chosen = steps[-1:]
        elif name.startswith("logprob_"):
            chosen = chosen[:1]
        if chosen:
            figures[f"train/{name}"] = float(sum(s[name] for s in chosen) / len(chosen))
    return figures


def cost_figures(
    driver: Driver, stats: Stats, *, lag: int, overlapped: float, trained: float, total: float
) -> dict[str, float]:
    """What an iteration took: times of its stages and counts of its rollout; see docs/metrics.md.

    Args:
      driver: that played it.
      stats: of the engine meanwhile.
      lag: optimizer steps between the weights that played and those that were updated.
      overlapped: seconds of the rollout during which the training loop did something else.
      trained: seconds of the update.
      total: seconds of the iteration in the training loop.
    """
    stages = {
        "time/environment": driver.environment_seconds,
        "time/prefill": stats.seconds_prefill,
        "time/decode": stats.seconds_decode,
        "time/train": trained,
    }
    counts = {
        "rollout/episodes": driver.finished,
        "rollout/prefilled_tokens": stats.prefilled_tokens,
        "rollout/reused_tokens": stats.reused_tokens,
        "rollout/decoded_tokens": stats.decoded_tokens,
        "rollout/evictions": stats.evictions,
        "rollout/overlapped_seconds": overlapped,
        "rollout/cache_used": stats.columns_used / max(stats.columns_held, 1),
        "rollout/policy_lag": lag,
        "env/respawns": driver.pool.respawns,
        "env/quarantined": len(driver.pool.quarantined),
    }
    for kind in ("turns", "turns_shortened", "turns_dropped"):
        counts[f"rollout/extraction_{kind}"] = driver.extracted[kind]
    for kind in ("attempts", "attempts_dropped"):
        if driver.extracted["attempts"]:  # sources were played several times
            counts[f"rollout/extraction_{kind}"] = driver.extracted[kind]
    for kind, stage in REUSED:
        counts[f"rollout/{kind}_reused_{stage}"] = driver.reused[kind, stage]
    return {
        **stages,
        "time/other": total + overlapped - sum(stages.values()),
        "time/total": total,
        **counts,
    }
