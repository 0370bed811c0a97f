"""GSPO (arXiv 2507.18071): the ratio and its clip are those of the whole sequence.

Command:   evolving-rl train --config=configs/methods/gspo.py --workdir=runs/gspo; to compare: docs/methods.md
Hardware:  two CPU cores, 4 GB of memory
Expected:  own skill, temperature 1: 43 % on unseen households, 37 % on held-out types (docs/methods.md)
"""

import importlib.util
import pathlib


def get_config():
    """GRPO with clips of 3e-4 and 4e-4."""
    path = pathlib.Path(__file__).with_name("evolving_rl.py")
    spec = importlib.util.spec_from_file_location("evolving_rl", path)
    base = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(base)
    config = base.get_config()
    config.algorithm.update(arm="grpo", ratio="gspo", clip_low=3e-4, clip_high=4e-4)
    return config
