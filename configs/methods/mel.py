"""Meta-Experience Learning, MEL (arXiv 2602.10224): likelihood of the skills that proved right.

Command:   evolving-rl train --config=configs/methods/mel.py --workdir=runs/mel; to compare: docs/methods.md
Hardware:  two CPU cores, 4 GB of memory
Expected:  own skill, temperature 1: 67 % on unseen households, 65 % on held-out types (docs/methods.md)
"""

import importlib.util
import pathlib


def get_config():
    """Evolving-RL with the likelihood of skills that won most of their plays."""
    path = pathlib.Path(__file__).with_name("evolving_rl.py")
    spec = importlib.util.spec_from_file_location("evolving_rl", path)
    base = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(base)
    config = base.get_config()
    config.replay.sequences = 16
    config.replay.skills.update(weight=1.0, min_reward=0.5)
    return config
