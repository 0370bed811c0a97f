"""SPEAR (arXiv 2509.22601): GRPO that imitates its own recent wins, with the covariance clip.

Command:   evolving-rl train --config=configs/methods/spear.py --workdir=runs/spear; to compare: docs/methods.md
Hardware:  two CPU cores, 4 GB of memory
Expected:  own skill, temperature 1: 31 % on unseen households, 32 % on held-out types (docs/methods.md)
"""

import importlib.util
import pathlib


def get_config():
    """No division by the standard deviation, no KL, groups without spread dropped."""
    path = pathlib.Path(__file__).with_name("evolving_rl.py")
    spec = importlib.util.spec_from_file_location("evolving_rl", path)
    base = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(base)
    config = base.get_config()
    config.algorithm.update(arm="grpo", advantage="none", solver_reward=1.0)
    config.algorithm.update(aggregate="constant", aggregate_length=50.0)
    config.algorithm.update(clip_low=0.2, clip_high=0.28, empty_groups="drop")
    config.algorithm.kl_coef.update(solver=0.0, extractor=0.0)
    config.algorithm.covariance.update(kind="clip", share=0.02, low=1.0, high=40.0)
    config.replay.sequences = 64
    config.replay.wins.update(weight=1.0, min_advantage=1.0, max_age=5, ramp=20)
    return config
