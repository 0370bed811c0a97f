"""Qwen2.5-7B-Instruct on the downloaded ALFWorld games with LoRA adapters, for one GPU.

Command:   evolving-rl train --config=configs/alfworld_qwen2_5_7b_lora.py --workdir=runs/qwen7b-lora --config.data.games=GAMES
Hardware:  one GPU with room for two copies of the weights in bfloat16 (memory: not yet measured), or a TPU slice of v6e:2x2 with
           --config.mesh.fsdp=1 --config.mesh.tensor=4: 16.59 of 31.25 GiB a device, as `evolving-rl compile` printed it (not used yet)
Time:      not yet measured
Expected:  not yet measured
"""

from evolving_rl_jax.config import default_config


def get_config():
    """The paper's algorithm; only adapters are trained."""
    config = default_config()
    config.model.update(hf_path="Qwen/Qwen2.5-7B-Instruct", dtype="bfloat16")
    config.model.lora.update(rank=32, alpha=64.0)
    config.mesh.update(data=1, fsdp=-1, tensor=1)
    config.optimizer.update(learning_rate=1e-5, weight_decay=0.0)
    config.rollout.update(
        style="chat",
        num_slots=16,
        prefill_buckets=(64, 256),
        row_buckets=(4, 16),
        column_buckets=(2048, 4096, 8192, 16384),
    )
    config.train.update(micro_batch_rows=1, minibatches=1)
    # Downloaded games name no household facts; their panels take past experience from `train`.
    config.eval.update(
        temperatures=(0.0,),
        splits=("valid_unseen", "heldout_types"),
        conditions=("none", "own"),
        num_games=0,
    )
    return config
