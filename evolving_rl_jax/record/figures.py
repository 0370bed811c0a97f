"""What is written down of an iteration: figures of its rollout, and records of the skill bank."""

from __future__ import annotations

from evolving_rl_jax.generate import Stats
from evolving_rl_jax.rollout import known_facts
from evolving_rl_jax.rollout.episode import Driver
from evolving_rl_jax.rollout.evolve import Experience, StepScoring
from evolving_rl_jax.skills.bank import SkillRecord
from evolving_rl_jax.types import Episode

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
                SkillRecord(
                    id=f"it{iteration:05d}-g{g:03d}-n{n}",
                    iteration=iteration,
                    source_task_id=source.task.id,
                    source_task_hash=source.task.content_hash,
                    source_text=source.task.text,
                    episode_id=f"it{iteration:05d}-g{g:03d}",
                    policy_step=policy_step,
                    reward=_skill_reward(candidate, played, scoring),
                    skill=candidate.skill.to_dict() if candidate.skill else None,
                    reason=candidate.reason,
                    audit=candidate.audit._asdict() if candidate.audit else None,
                    uses=len(played),
                    wins=sum(float(e.won) for e in played),
                )
            )
    return records


def _skill_reward(candidate, played: list[Episode], scoring: StepScoring | None) -> float | None:
    """The extractor's reward: 0 for an invalid skill, None when no episode could be scored."""
    if not candidate.valid:
        return 0.0
    scores = [scoring.of(e) if scoring else float(e.won) for e in played]
    return sum(scores) / len(scores) if scores else None


def rollout_figures(experience: Experience) -> dict[str, float]:
    """The rollout's own figures; see docs/metrics.md."""
    sources = [s for s in experience.sources if s.episode is not None]
    candidates = [c for s in sources for c in s.candidates]
    scored = experience.episode_mask.sum()
    figures = {
        "rollout/win_rate": float(
            (experience.wins * experience.episode_mask).sum() / max(scored, 1)
        ),
        "rollout/scored_episodes": float(scored),
    }
    episodes = [e for s in experience.sources for e in s.episodes.values()]
    if episodes:
        turns = [t for e in episodes for t in e.turns]
        figures["rollout/failed_episodes"] = float(sum(not e.scored for e in episodes))
        figures["rollout/turns"] = len(turns) / len(episodes)
        figures["rollout/valid_actions"] = sum(t.valid for t in turns) / max(len(turns), 1)
    if experience.step_mask is not None:
        attempted, correct = experience.step_mask.sum(), (experience.step_rewards > 0).sum()
        figures["rollout/action_accuracy"] = float(correct / max(attempted, 1))
        figures["rollout/correct_steps"] = float(correct / max(scored, 1))
    if sources:
        figures["rollout/source_success"] = sum(s.episode.won for s in sources) / len(sources)
    if candidates:
        figures["rollout/skill_valid"] = sum(c.valid for c in candidates) / len(candidates)
        lengths = [int(c.sample.loss_mask.sum()) for c in candidates]
        figures["rollout/skill_tokens"] = sum(lengths) / len(lengths)
        figures.update(_fact_figures(sources))
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
    for kind, stage in REUSED:
        counts[f"rollout/{kind}_reused_{stage}"] = driver.reused[kind, stage]
    return {
        **stages,
        "time/other": total + overlapped - sum(stages.values()),
        "time/total": total,
        **counts,
    }


def _fact_figures(sources) -> dict[str, float]:
    known = [s for s in sources if known_facts.share_seen(s.episode) is not None]
    if not known:
        return {}
    seen = sum(known_facts.share_seen(s.episode) for s in known)
    revealed = [s for s in known if known_facts.share_seen(s.episode)]
    told = [
        known_facts.share_stated(s.episode, c.text) / known_facts.share_seen(s.episode)
        if c.valid
        else 0.0
        for s in revealed
        for c in s.candidates
    ]
    return {
        "rollout/fact_seen": seen / len(known),
        "rollout/fact_stated_when_seen": sum(told) / max(len(told), 1),
    }
