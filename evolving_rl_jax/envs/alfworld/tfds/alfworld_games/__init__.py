"""TFDS data set of the indexed ALFWorld games."""

from evolving_rl_jax.envs.alfworld.tfds.alfworld_games.alfworld_games_dataset_builder import Builder

__all__ = ["Builder"]
