"""Qwen3-1.7B on the downloaded ALFWorld games, all weights trained, shorter context.

Command:   evolving-rl train --config=configs/alfworld_qwen3_1_7b.py --workdir=runs/qwen1.7b --config.data.games=GAMES
Hardware:  a TPU slice of v5e:2x4 (8 chips): 11.74 of 15.75 GiB a device, as `evolving-rl compile` printed it; more in
           docs/hardware.md (none was used yet).  One 80 GB GPU: memory not yet measured
Time:      not yet measured
Expected:  not yet measured
"""

from evolving_rl_jax.config import default_config


def get_config():
    """The paper's algorithm with a smaller model."""
    config = default_config()
    config.model.update(hf_path="Qwen/Qwen3-1.7B", dtype="bfloat16")
    config.mesh.update(data=1, fsdp=-1, tensor=1)
    config.rollout.update(
        style="chat",
        max_length=8192,
        num_slots=16,
        prefill_buckets=(64, 256),
        row_buckets=(4, 16),
        column_buckets=(2048, 4096, 8192),
    )
    config.train.update(row_length=8192, micro_batch_rows=8)
    # Downloaded games name no household facts; their panels take past experience from `train`.
    config.eval.update(
        temperatures=(0.0,),
        splits=("valid_unseen", "heldout_types"),
        conditions=("none", "own"),
        num_games=0,
    )
    return config
