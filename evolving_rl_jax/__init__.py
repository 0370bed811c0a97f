"""Evolving-RL in JAX (arXiv 2605.10663): one policy solves tasks and writes the skills it solves them with.

Importing this package imports nothing else: ``from evolving_rl_jax import losses`` needs jax only, and
environment workers never load jax at all.
"""

__version__ = "0.1.0"
