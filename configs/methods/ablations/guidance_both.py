"""Guidance kept and stripped: the loss reads every play with its skill, and once more without it.

Command:   docs/methods.md#ablations
Hardware:  two CPU cores, 4 GB of memory
Expected:  own skill, temperature 1: 65 % on unseen households, 64 % on held-out types (docs/methods.md)
"""

import importlib.util
import pathlib


def get_config():
    """Half of a solver's advantage for either way of reading its play."""
    path = pathlib.Path(__file__).parents[1] / "evolving_rl.py"
    spec = importlib.util.spec_from_file_location("evolving_rl", path)
    base = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(base)
    config = base.get_config()
    half = 0.5 * config.algorithm.kl_coef.solver
    config.replay.update(sequences=128, kl_coef=half)  # G x K x N x R
    config.replay.guided.update(weight=0.5, signal="advantage")
    config.algorithm.solver_weight = 0.5
    config.algorithm.kl_coef.solver = half
    return config
