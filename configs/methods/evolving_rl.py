"""Evolving-RL on the household world, smaller than the quickstart: what every method here starts from.

Command:   evolving-rl ablation --configs=configs/methods/evolving_rl.py,configs/methods/grpo.py --workdir=runs/methods --seeds=2
Hardware:  two CPU cores, 4 GB of memory
Time:      a few minutes; the thirteen first methods with two seeds took 110 on one of two shared cores
Expected:  own skill, temperature 1: 66 % on unseen households, 63 % on held-out types (docs/methods.md)
"""

import importlib.util
import pathlib


def get_config():
    """The quickstart's policy, warm start and games; fewer and smaller iterations, a smaller panel."""
    path = pathlib.Path(__file__).parents[1] / "alfworld_quickstart.py"
    spec = importlib.util.spec_from_file_location("quickstart", path)
    quickstart = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(quickstart)
    config = quickstart.get_config()
    config.rollout.num_retrieved = 4
    config.train.num_iterations = 40
    config.eval.update(temperatures=(1.0,), conditions=("none", "own"), num_games=160)
    return config
