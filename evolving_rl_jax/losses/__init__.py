"""Losses and advantages of Evolving-RL.  Needs jax and nothing else; usable from any JAX project.

    from evolving_rl_jax import losses

Every function is pure, works under jit, grad and vmap, computes in float32, takes arrays by
position and hyper-parameters by keyword, and raises ``ValueError`` with the shape it found.
``docs/losses.md`` shows the six lines that put them together.
"""

from evolving_rl_jax.losses.advantages import (
    SkillAdvantages,
    group_normalize,
    skill_advantages,
    step_advantages,
)
from evolving_rl_jax.losses.logprobs import KeptLogprobs, kept_token_logprobs, token_logprobs
from evolving_rl_jax.losses.policy import (
    clipped_policy_loss,
    evolving_rl_loss,
    kl_estimate,
    truncated_importance,
)
from evolving_rl_jax.losses.variants import (
    CovarianceLimits,
    cispo_loss,
    covariance_limits,
    covariance_outliers,
    sequence_logprobs,
)

__all__ = [
    "CovarianceLimits",
    "KeptLogprobs",
    "SkillAdvantages",
    "cispo_loss",
    "clipped_policy_loss",
    "covariance_limits",
    "covariance_outliers",
    "evolving_rl_loss",
    "group_normalize",
    "kept_token_logprobs",
    "kl_estimate",
    "sequence_logprobs",
    "skill_advantages",
    "step_advantages",
    "token_logprobs",
    "truncated_importance",
]
