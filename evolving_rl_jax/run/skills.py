"""What ``config.skills`` asks for: the embedder, retrievers, audits, and the limit of a prompt."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import pathlib
from collections.abc import Callable, Iterator, Sequence

from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.data.tasks import source_split
from evolving_rl_jax.envs import benchmark
from evolving_rl_jax.skills import (
    AuditRules,
    CachedEmbedder,
    Embedder,
    Retriever,
    SentenceTransformerEmbedder,
    SkillRetriever,
    TfidfEmbedder,
    fit_text,
)
from evolving_rl_jax.skills.audit import answers
from evolving_rl_jax.skills.retrieval import shortage
from evolving_rl_jax.types import Task

_SENTENCE_TRANSFORMERS = "sentence-transformers:"


def make_embedder(name: str, cache: pathlib.Path) -> Embedder:
    """The embedder that ``config.skills.embedder`` names.

    Args:
      name: ``tfidf``, ``sentence-transformers:NAME``, or a folder or hub id of a decoder such as
        Qwen3-Embedding.
      cache: folder that keeps the vectors of pretrained embedders.

    Raises:
      ConfigError: there is no such model, or a library is missing.
    """
    return TfidfEmbedder() if name == "tfidf" else _pretrained(name, cache)


@functools.lru_cache(maxsize=1)  # a model is read once, however many retrievers embed with it
def _pretrained(name: str, cache: pathlib.Path) -> Embedder:
    with _embedder_errors(name):
        if name.startswith(_SENTENCE_TRANSFORMERS):
            model = SentenceTransformerEmbedder(name.removeprefix(_SENTENCE_TRANSFORMERS))
        else:
            from evolving_rl_jax.models.embedding import DecoderEmbedder

            model = DecoderEmbedder(name)
    return CachedEmbedder(model, cache)


def check_embedder(name: str) -> None:
    """Raises ConfigError where `make_embedder` would for want of a model or a library; loads neither."""
    with _embedder_errors(name):
        if name.startswith(_SENTENCE_TRANSFORMERS):
            if importlib.util.find_spec("sentence_transformers") is None:
                raise ImportError("no module named sentence_transformers")
        elif name != "tfidf":
            from evolving_rl_jax.models import config_from_hf

            config_from_hf(name)


def check_tasks(config, train: Sequence[Task], tasks: Sequence[Task] = ()) -> None:
    """Checks that the tasks of a run allow what ``config.skills`` asks for.

    Args:
      config: of the run.
      train: sources and retrieved tasks of training.
      tasks: all tasks, those of the panels and of their source pools among them.

    Raises:
      ConfigError: the leakage audit has nothing to compare with, tasks that are to be retrieved by
        their group have none, or a task finds too few others.
    """
    if config.skills.audit_leakage and not any(map(answers, train)):
        raise ConfigError(
            "config.skills.audit_leakage must be False with training tasks of which none says its "
            "solution (no walkthrough in a game, no answers in an index of web tasks), got True"
        )
    panel = [t for t in tasks if t.split in config.eval.splits]
    known = {t.split for t in tasks}
    names = {source_split(t.split, known) for t in panel}
    pool = [t for t in tasks if t.split in names - {config.data.train_split}]
    pool += train if config.data.train_split in names else []
    if config.algorithm.arm != "grpo":
        key = "config.rollout.num_retrieved"
        _check_retrieval(config, key, train, train, config.rollout.num_retrieved)
    if "own" in config.eval.conditions:
        key = "config.eval.conditions 'own'"
        _check_retrieval(config, key, pool, panel, 1, others=panel)


def _check_retrieval(
    config, key: str, pool: Sequence[Task], queries: Sequence[Task], k: int, others=()
) -> None:
    """Raises ConfigError where what ``config.skills`` leaves out leaves too little to retrieve."""
    s = config.skills
    unknown = sum(not t.group for t in {t.id: t for t in (*pool, *queries)}.values())
    if s.prefer != "text" and unknown:
        raise ConfigError(
            f"config.skills.prefer must be 'text' with tasks that say no group (room, household or "
            f"site), got {s.prefer!r} and {unknown} such tasks"
        )
    rules = {"exclude_identical_text": s.exclude_identical_text, "prefer": s.prefer == "other"}
    if not any(rules.values()):
        return
    same = dict(zip(("same_text", "same_group"), rules.values(), strict=True))
    if why := shortage(pool, queries, k, others=others, **same):
        named = " and ".join(f"config.skills.{name}" for name, on in rules.items() if on)
        raise ConfigError(f"{key} with {named}: {why}")


@contextlib.contextmanager
def _embedder_errors(name: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"config.skills.embedder {name!r} must have its library installed (pip install "
            f"sentence-transformers), got {error}"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(
            "config.skills.embedder must be tfidf, sentence-transformers:NAME or an embedding model "
            f"(folder or hub id), got {name!r}: {error}"
        ) from error


def make_retriever(parts, tasks: Sequence[Task]) -> Retriever:
    """A retriever over a pool of tasks, as ``config.skills`` says."""
    s = parts.config.skills
    return Retriever(
        tasks,
        make_embedder(s.embedder, parts.folder.path / "cache"),
        exclude_identical_text=s.exclude_identical_text,
        prefer=s.prefer,
    )


def make_skill_retriever(config, folder) -> SkillRetriever:
    """An empty retriever of skills, as ``config.skills`` says."""
    s = config.skills
    return SkillRetriever(
        make_embedder(s.embedder, folder.path / "cache"),
        min_similarity=s.min_similarity,
        exclude_identical_text=s.exclude_identical_text,
        prefer=s.prefer,
    )


def audit_rules(config) -> AuditRules:
    """The audits that ``config.skills`` switches on, and those of the environment."""
    s = config.skills
    return AuditRules(
        max_chars=config.rollout.max_skill_chars if s.audit_length else None,
        leakage=s.audit_leakage,
        entities=s.audit_entities,
        further=benchmark(config.env.name).audit_rules(),
    )


def fit_to_prompt(config, tokenizer) -> Callable[[str], str]:
    """Cuts a skill text to ``config.skills.prompt_tokens`` tokens of the tokenizer."""
    limit = config.skills.prompt_tokens
    if not limit:
        return str
    return lambda text: fit_text(text, limit, lambda t: len(tokenizer.encode(t)))
