"""Complementary RL (arXiv 2603.17621): guided and free plays in groups apart, old extractions trained on again.

Command:   evolving-rl train --config=configs/methods/complementary_rl.py --workdir=runs/complementary_rl; to compare: docs/methods.md
Hardware:  two CPU cores, 4 GB of memory
Expected:  own skill, temperature 1: 49 % on unseen households, 44 % on held-out types (docs/methods.md)
"""

import importlib.util
import pathlib


def get_config():
    """Half of the plays that the bank can guide are guided; CISPO."""
    path = pathlib.Path(__file__).with_name("evolving_rl.py")
    spec = importlib.util.spec_from_file_location("evolving_rl", path)
    base = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(base)
    config = base.get_config()
    config.rollout.num_retrieved = 2  # each with three kinds of plays
    config.guidance.update(free_repeats=4, repeats=4, candidates=16, weight=0.0, diversity=0.4)
    config.replay.sequences = 64
    config.replay.extractions.update(weight=1.5, cooldown=1, exponent=1.0)
    config.algorithm.ratio = "cispo"
    return config
