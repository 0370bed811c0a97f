"""Skills: their schema, language audit, bank and retrieval.  Never imports jax."""

from evolving_rl_jax.skills.audit import AuditResult, audit
from evolving_rl_jax.skills.bank import Bank, SkillRecord
from evolving_rl_jax.skills.retrieval import Embedder, Retriever, TfidfEmbedder
from evolving_rl_jax.skills.schema import Skill, parse_skill, render_skill

__all__ = [
    "AuditResult",
    "Bank",
    "Embedder",
    "Retriever",
    "Skill",
    "SkillRecord",
    "TfidfEmbedder",
    "audit",
    "parse_skill",
    "render_skill",
]
