"""MemRL (arXiv 2601.03192): two-phase retrieval by a learned Q; here the policy is trained too.

Command:   evolving-rl train --config=configs/methods/memrl.py --workdir=runs/memrl; to compare: docs/methods.md
Hardware:  two CPU cores, 4 GB of memory
Expected:  own skill, temperature 1: 47 % on unseen households, 42 % on held-out types (docs/methods.md)
"""

import importlib.util
import pathlib


def get_config():
    """Five candidates by similarity, three by similarity and Q."""
    path = pathlib.Path(__file__).with_name("evolving_rl.py")
    spec = importlib.util.spec_from_file_location("evolving_rl", path)
    base = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(base)
    config = base.get_config()
    config.rollout.num_retrieved = 2  # each with three kinds of plays
    config.algorithm.arm = "solver_only"
    config.guidance.update(
        free_repeats=4, repeats=4, top=3, value="ema", rate=0.3, candidates=5, weight=0.5
    )
    return config
