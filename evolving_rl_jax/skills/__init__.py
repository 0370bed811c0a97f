"""Skills: their schema, language audit, bank, curation and retrieval.  Never imports jax.

Lives here: what a skill is (``schema``), whether its text may be used (``audit`` with ``characters``,
``loops``, ``wording``), where skills are kept (``bank``, ``records``, ``folders``, ``curate``) and how tasks
and skills are found (``retrieval``, ``index``, ``embedders``).
May be imported from here: everything below.  Imports nothing but types and files; knows no benchmark and
no token.
"""

from evolving_rl_jax.skills.audit import AuditResult, AuditRules, audit
from evolving_rl_jax.skills.bank import Bank, SkillRecord
from evolving_rl_jax.skills.embedders import (
    CachedEmbedder,
    Embedder,
    SentenceTransformerEmbedder,
    TfidfEmbedder,
)
from evolving_rl_jax.skills.records import Outcome
from evolving_rl_jax.skills.retrieval import Retriever, SkillRetriever
from evolving_rl_jax.skills.schema import Skill, fit_text, parse_skill, render_skill

__all__ = [
    "AuditResult",
    "AuditRules",
    "Bank",
    "CachedEmbedder",
    "Embedder",
    "Outcome",
    "Retriever",
    "SentenceTransformerEmbedder",
    "Skill",
    "SkillRecord",
    "SkillRetriever",
    "TfidfEmbedder",
    "audit",
    "fit_text",
    "parse_skill",
    "render_skill",
]
