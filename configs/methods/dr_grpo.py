"""Dr. GRPO (arXiv 2503.20783): no division by the group's spread, none by the length.

Command:   evolving-rl train --config=configs/methods/dr_grpo.py --workdir=runs/dr_grpo; to compare: docs/methods.md
Hardware:  two CPU cores, 4 GB of memory
Expected:  own skill, temperature 1: 40 % on unseen households, 32 % on held-out types (docs/methods.md)
"""

import importlib.util
import pathlib


def get_config():
    """GRPO without KL."""
    path = pathlib.Path(__file__).with_name("evolving_rl.py")
    spec = importlib.util.spec_from_file_location("evolving_rl", path)
    base = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(base)
    config = base.get_config()
    config.algorithm.update(
        arm="grpo", advantage="none", solver_reward=1.0, aggregate="constant", aggregate_length=50.0
    )
    config.algorithm.kl_coef.update(solver=0.0, extractor=0.0)
    return config
