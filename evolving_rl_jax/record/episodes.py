"""What ``episodes/*.jsonl.gz`` keeps of an iteration: a few sources, whole, with every trained token.

A record holds what is needed to follow one source from its episode over its skills to the wins, and to
see what the update read: tokens as pieces of text, which of them were sampled, their log-probabilities
and the advantage of their sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from evolving_rl_jax import losses
from evolving_rl_jax.rollout.evolve import Candidate, Experience, Source, StepScoring
from evolving_rl_jax.types import Episode, Sample, Task
from evolving_rl_jax.update.advantages import (
    arm_weights,
    source_advantages,
    unweighted_advantages,
)

# A character has at most four bytes, so at most as many tokens of a byte-level vocabulary.
_MOST_TOKENS_A_CHARACTER = 4


def episode_records(experience: Experience, iteration: int, config: Any, tokenizer: Any) -> list:
    """The records of the first ``config.train.log_episodes`` sources, as JSON values.

    Args:
      experience: of the iteration.
      iteration: its number.
      config: the run's; ``train.log_episodes`` and the group ``algorithm`` are read.
      tokenizer: with ``decode(ids)``.
    """
    kept = range(min(config.train.log_episodes, len(experience.sources)))
    if not kept:
        return []
    advantages = sequence_advantages(experience, config.algorithm)
    sources = source_advantages(config.algorithm, experience)
    if sources is not None:
        sources = np.asarray(sources) * arm_weights(config.algorithm)[0]
    scoring = StepScoring.from_config(config)
    more = {"score": scoring.of} if scoring else {}
    return [
        source_record(
            experience.sources[g],
            f"it{iteration:05d}-g{g:03d}",
            iteration,
            extractor=advantages.extractor[g],
            solver=advantages.solver[g],
            decode=tokenizer.decode,
            sources=None if sources is None else sources[g],
            **more,
        )
        for g in kept
    ]


def sequence_advantages(experience: Experience, algorithm: Any) -> losses.SkillAdvantages:
    """The advantages that the update gives each extraction [G, N] and each episode [G, K, N, R], or
    each step [G, K, N, R, S] where steps are scored.

    Recomputed from the wins; groups never cross sources, so minibatches make no difference.
    """
    result = unweighted_advantages(algorithm, experience)
    solver, extractor = arm_weights(algorithm)
    result = result._replace(solver=result.solver * solver, extractor=result.extractor * extractor)
    return losses.SkillAdvantages(*map(np.asarray, result))


def source_record(
    source: Source,
    name: str,
    iteration: int,
    *,
    extractor: np.ndarray,
    solver: np.ndarray,
    decode: Callable[[Sequence[int]], str],
    sources: np.ndarray | None = None,
    score: Callable[[Episode], float] = lambda episode: episode.reward,
) -> dict[str, Any]:
    """One source with its skills and their episodes.

    Args:
      source: the source; without an episode of its own in the arm ``grpo``, where the entries of
        ``skills`` are the repeats of each task.
      name: as in the bank's ``episode_id``.
      iteration: number of the iteration.
      extractor: [N], advantage of each extraction.
      solver: [K, N, R], advantage of each episode, or [K, N, R, S], of each of its steps.
      decode: ids to text.
      sources: [E], advantage of each attempt at the source, or [E, S], of each of its steps; None where they
        are not trained on.
      score: what an episode counts for the reward of its skill.
    """
    num_skills = len(extractor) if source.candidates or source.episodes else 0
    head = None if source.episode is None else _episode(source.episode, None, decode)
    skills = []
    for n in range(num_skills):
        candidate = source.candidates[n] if source.candidates else None
        played = [
            {"k": k, "r": r, **_episode(e, solver[k, n, r], decode)}
            for (k, m, r), e in sorted(source.episodes.items())
            if m == n
        ]
        shared = _shared(source.episode, candidate)
        skills.append(
            {**_skill(candidate, float(extractor[n]), shared, decode), "episodes": played}
        )
        skills[-1]["reward"] = _mean(
            [score(e) for (_, m, _), e in source.episodes.items() if m == n and e.scored]
        )
    tasks = [_task(task) for task in source.retrieved]
    record = {"iteration": iteration, "id": name, "source": head, "tasks": tasks, "skills": skills}
    return record | _attempts(source, sources, decode)


def _attempts(source: Source, advantages: np.ndarray | None, decode) -> dict[str, Any]:
    """All attempts at a source that was played several times; ``best`` is the number of its episode."""
    if not source.attempts:
        return {}
    given = [None] * len(source.attempts) if advantages is None else advantages
    played = [_episode(e, a, decode) for e, a in zip(source.attempts, given, strict=True)]
    best = next(i for i, e in enumerate(source.attempts) if e is source.episode)
    return {"attempts": played, "best": best}


def _skill(candidate: Candidate | None, advantage: float, shared: int, decode) -> dict[str, Any]:
    if candidate is None:
        empty = {"raw": "", "name": "", "description": "", "valid": None, "reason": ""}
        return {**empty, "advantage": None, "sequences": []}
    return {
        "raw": candidate.raw,
        "name": candidate.skill.name if candidate.skill else "",
        "description": candidate.skill.description if candidate.skill else "",
        "valid": candidate.valid,
        "reason": candidate.reason,
        "advantage": _rounded(advantage),
        "sequences": [_sequence(candidate.sample, decode, shared)],
    }


def _task(task: Task) -> dict[str, str]:
    return {"task": task.id, "type": task.task_type, "text": task.text}


def _episode(episode: Episode, advantage: np.ndarray | None, decode) -> dict[str, Any]:
    """``advantage`` is None where the update does not read the episode; of steps it is a vector."""
    sequences = [_sequence(sample, decode) for sample in episode.samples]
    if advantage is not None and np.ndim(advantage):
        for sequence in sequences:
            sequence["advantage"] = _rounded(advantage[sequence["turn"]])
        advantage = _mean([advantage[s["turn"]] for s in sequences])
    return {
        **_task(episode.task),
        "won": bool(episode.won),
        "status": episode.status,
        "advantage": _rounded(advantage) if episode.scored else None,
        "turns": [vars(t) for t in episode.turns],
        "last_observation": episode.last_observation,
        "sequences": sequences,
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(sum(values) / len(values)) if len(values) else None


def _shared(episode: Episode | None, candidate: Candidate | None) -> int:
    """How many tokens an extraction has in common with the whole source episode it continues."""
    if episode is None or candidate is None or len(episode.samples) != 1:
        return 0
    tokens = episode.samples[0].tokens
    return len(tokens) if np.array_equal(candidate.sample.tokens[: len(tokens)], tokens) else 0


def _sequence(sample: Sample, decode, shared: int = 0) -> dict[str, Any]:
    """A training sequence from token ``shared`` on; what comes before is the source episode's."""
    sampled = sample.loss_mask[shared:] > 0
    return {
        "turn": sample.step,
        "shared": shared,
        "pieces": token_pieces(sample.tokens[shared:], decode),
        "mask": "".join("1" if s else "0" for s in sampled),
        "logprobs": [_rounded(x) for x in sample.logprobs[shared:][sampled]],
        "sampling_logprobs": [_rounded(x) for x in sample.sampling_logprobs[shared:][sampled]],
    }


def token_pieces(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """The text of each token; joined they are the text of all.

    A character whose bytes are spread over several tokens belongs to the last of them, and the
    others are empty.
    """
    known: dict[int, str] = {}
    pieces: list[str] = []
    pending: list[int] = []
    for token in map(int, ids):
        if token not in known:
            known[token] = decode([token])
        pending.append(token)
        text = known[token] if len(pending) == 1 else decode(pending)
        pieces.append(text)
        if text.endswith("\ufffd") and len(pending) < _MOST_TOKENS_A_CHARACTER:
            pieces[-1] = ""
        else:
            pending = []
    if pending:
        pieces[-1] = decode(pending)  # cut off in the middle of a character
    return pieces


def _rounded(value: Any) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return round(float(value), 4) + 0.0  # + 0.0: no negative zero
