"""What a skill is worth on objects that training never met: ALFRED's own trajectories, a policy from scratch, two cores.

Command:   evolving-rl data alfred --source=json_2.1.0 --out=runs/alfred/games
           evolving-rl data objects --source=runs/alfred/games --out=runs/alfred/objects
           evolving-rl train --config=configs/alfred_objects.py --workdir=runs/objects --config.data.games=runs/alfred/objects
           evolving-rl ablation --config=configs/alfred_objects.py --workdir=runs/objects_ablation --seeds=3 --jobs=2 --config.data.games=runs/alfred/objects
Hardware:  two CPU cores, 4 GB of memory; no accelerator
Time:      the warm start 95 minutes on one of two shared cores
Expected:  after the warm start 16 % of games of seen objects without a skill, 38 % with the oracle's; of held-out objects hardly any;
           then skills stop naming numbers of places, 10 to 15 minutes an arm (docs/objects.md)
"""

from evolving_rl_jax.config import default_config


def get_config():
    """A policy cloned from a player that knows no usual places, and 14 steps: patience wins nothing."""
    config = default_config()
    config.data.update(train_types=(*config.data.train_types, "look_at_obj_in_light"))
    config.model.update(
        vocab_size=1000,  # words of games about seen objects whole, other names in pieces
        numbered_tokens=False,
        hidden_size=96, intermediate_size=256, num_layers=3, num_heads=4, num_kv_heads=4, qk_norm=True,
    )  # fmt: skip
    config.rollout.update(
        style="compact",
        num_sources=8,
        num_retrieved=4,
        num_skills=4,
        num_repeats=1,
        max_steps=14,
        max_turn_tokens=24,
        max_skill_tokens=48,
        top_p=1.0,
        num_slots=128,
        max_length=640,
        prefill_buckets=(32, 128),
        decode_window=20,
        column_buckets=(256, 448, 640),
    )
    config.skills.update(prefer="other")
    config.algorithm.update(extractor_weight=1.5, solver_weight=1.0)
    config.algorithm.kl_coef.update(solver=0.2, extractor=0.01)
    config.algorithm.entropy_coef.update(solver=0.0, extractor=0.0)
    config.optimizer.update(
        learning_rate=5e-4, b1=0.9, b2=0.95, weight_decay=0.0, schedule="cosine"
    )
    config.train.update(
        num_iterations=40,
        minibatches=2,
        row_length=640,
        micro_batch_rows=10,
        logprob_chunk=64,
        remat="none",
        log_episodes=2,
    )
    config.warmstart.update(
        enabled=True,
        splits=("train", "warmstart"),  # the latter: the same games with made-up names of objects
        episodes=8000,
        steps=7000,
        batch_rows=10,
        learning_rate=4e-3,
        action_noise=0.04,
        follow_skill=0.9,
        good_extraction=0.7,
    )
    config.eval.update(
        temperatures=(0.3,),
        splits=("seen_objects", "heldout_objects"),
        conditions=("none", "own", "oracle"),
    )
    return config
