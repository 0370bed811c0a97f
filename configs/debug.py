"""The whole loop in under half a minute, to see that it runs: tiny sizes, nothing is learned.

Command:   evolving-rl train --config=configs/debug.py --workdir=runs/debug
Hardware:  one CPU core
Time:      18 seconds with the install done
Expected:  every stage runs and report.html is written; the figures mean nothing
"""

import importlib.util
import pathlib


def get_config():
    """The quickstart, shrunk in every size."""
    path = pathlib.Path(__file__).with_name("alfworld_quickstart.py")
    spec = importlib.util.spec_from_file_location("alfworld_quickstart", path)
    quickstart = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(quickstart)
    config = quickstart.get_config()
    config.env.check_games = 0  # half a minute to a minute, the first time
    config.data.households.update(
        num_train=4, num_unseen=2, games_per_object=4, heldout_games=6, warmstart_games=24
    )
    config.model.update(
        hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, num_kv_heads=1
    )
    config.rollout.update(
        num_sources=2, num_retrieved=2, num_skills=2, num_slots=8, row_buckets=(8,)
    )
    config.train.update(num_iterations=2, micro_batch_rows=4)
    config.checkpoint.every = 1
    config.warmstart.update(episodes=48, steps=4, batch_rows=8)
    config.eval.temperatures = (1.0,)
    return config
