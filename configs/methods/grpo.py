"""GRPO (arXiv 2402.03300): no skills, groups are repeats of one task.

Command:   evolving-rl train --config=configs/methods/grpo.py --workdir=runs/grpo; to compare: docs/methods.md
Hardware:  two CPU cores, 4 GB of memory
Expected:  own skill, temperature 1: 44 % on unseen households, 38 % on held-out types (docs/methods.md)
"""

import importlib.util
import pathlib


def get_config():
    """Groups of four plays."""
    path = pathlib.Path(__file__).with_name("evolving_rl.py")
    spec = importlib.util.spec_from_file_location("evolving_rl", path)
    base = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(base)
    config = base.get_config()
    config.algorithm.arm = "grpo"
    return config
