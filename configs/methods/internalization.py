"""Experience internalization (arXiv 2606.04703): guided wins are learned as if they had not been guided.

Command:   evolving-rl train --config=configs/methods/internalization.py --workdir=runs/internalization; to compare: docs/methods.md
Hardware:  two CPU cores, 4 GB of memory
Expected:  own skill, temperature 1: 66 % on unseen households, 67 % on held-out types (docs/methods.md)
"""

import importlib.util
import pathlib


def get_config():
    """Evolving-RL with the likelihood of its guided wins, read without the skill."""
    path = pathlib.Path(__file__).with_name("evolving_rl.py")
    spec = importlib.util.spec_from_file_location("evolving_rl", path)
    base = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(base)
    config = base.get_config()
    config.replay.sequences = 64
    config.replay.guided.weight = 0.3
    return config
