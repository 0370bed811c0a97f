"""Guidance stripped: what was played with a skill is learned from as if it had been played without one.

Command:   docs/methods.md#ablations
Hardware:  two CPU cores, 4 GB of memory
Expected:  own skill, temperature 1: 53 % on unseen households, 49 % on held-out types (docs/methods.md)
"""

import importlib.util
import pathlib


def get_config():
    """Evolving-RL; the same plays, advantages and KL, the prompts of the loss without their skill."""
    path = pathlib.Path(__file__).parents[1] / "evolving_rl.py"
    spec = importlib.util.spec_from_file_location("evolving_rl", path)
    base = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(base)
    config = base.get_config()
    config.replay.update(sequences=128, kl_coef=config.algorithm.kl_coef.solver)  # G x K x N x R
    config.replay.guided.update(weight=1.0, signal="advantage")
    config.algorithm.arm = "extractor_only"  # with the skill they have no advantage
    config.algorithm.kl_coef.solver = 0.0
    return config
