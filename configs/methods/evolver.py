"""EvolveR (arXiv 2510.16079): a bank with Laplace scores guides plays, and bad entries are removed.

Command:   evolving-rl train --config=configs/methods/evolver.py --workdir=runs/evolver; to compare: docs/methods.md
Hardware:  two CPU cores, 4 GB of memory
Expected:  own skill, temperature 1: 46 % on unseen households, 42 % on held-out types (docs/methods.md)
"""

import importlib.util
import pathlib


def get_config():
    """The solver alone is trained; at most three entries in a prompt."""
    path = pathlib.Path(__file__).with_name("evolving_rl.py")
    spec = importlib.util.spec_from_file_location("evolving_rl", path)
    base = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(base)
    config = base.get_config()
    config.rollout.num_retrieved = 2  # each with three kinds of plays
    config.algorithm.arm = "solver_only"
    config.algorithm.kl_coef.solver = 0.001
    config.guidance.update(
        free_repeats=4, repeats=4, top=3, value="laplace", min_uses=5, min_value=0.3
    )
    return config
