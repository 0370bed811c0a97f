"""The paper's run: Qwen2.5-7B-Instruct on the downloaded ALFWorld games, all weights trained.

Command:   evolving-rl train --config=configs/alfworld_qwen2_5_7b.py --workdir=runs/qwen7b --config.data.games=GAMES
Hardware:  a TPU slice of v5p:2x2x4 (16 chips): 38.34 of 95.74 GiB a device at most, 35.73 in the train step, as
           `evolving-rl compile` printed it; smaller slices and other chips are in docs/hardware.md (none was used yet)
Time:      not yet measured
Expected:  not yet measured (the paper: 96.0 % on trained, 88.6 % on held-out task types)
"""

from evolving_rl_jax.config import default_config


def get_config():
    """The paper's sizes (arXiv 2605.10663)."""
    config = default_config()
    config.model.update(hf_path="Qwen/Qwen2.5-7B-Instruct", dtype="bfloat16")
    config.mesh.update(data=1, fsdp=-1, tensor=1)
    config.rollout.update(
        style="chat",
        num_sources=16,
        num_retrieved=4,
        num_skills=8,
        num_repeats=1,
        max_steps=50,
        max_turn_tokens=512,
        max_skill_tokens=1536,
        temperature=1.0,
        top_p=0.9,
        max_length=16384,
        num_slots=64,
        prefill_buckets=(64, 256, 1024),
        row_buckets=(8, 64),
        column_buckets=(2048, 4096, 8192, 16384),
    )
    config.train.update(
        num_iterations=150,
        row_length=16384,
        micro_batch_rows=16,
        logprob_chunk=1024,
        remat="full",
    )
    config.optimizer.update(learning_rate=1e-6, b1=0.9, b2=0.98, weight_decay=0.1)
    # Downloaded games name no household facts; their panels take past experience from `train`.
    config.eval.update(
        temperatures=(0.0,),
        splits=("valid_unseen", "heldout_types"),
        conditions=("none", "own"),
        num_games=0,
    )
    return config
