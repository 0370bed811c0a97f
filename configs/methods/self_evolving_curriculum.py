"""Self-Evolving Curriculum (arXiv 2505.14970): kinds of tasks by how much their plays teach.

Command:   evolving-rl train --config=configs/methods/self_evolving_curriculum.py --workdir=runs/self_evolving_curriculum; to compare: docs/methods.md
Hardware:  two CPU cores, 4 GB of memory
Expected:  own skill, temperature 1: 42 % on unseen households, 37 % on held-out types (docs/methods.md)
"""

import importlib.util
import pathlib


def get_config():
    """GRPO; a kind is an object of a household."""
    path = pathlib.Path(__file__).with_name("evolving_rl.py")
    spec = importlib.util.spec_from_file_location("evolving_rl", path)
    base = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(base)
    config = base.get_config()
    config.algorithm.arm = "grpo"
    config.curriculum.update(kind="bandit", by="group", rate=0.5, temperature=0.4)
    return config
