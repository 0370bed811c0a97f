"""Real tasks on a laptop: ALFRED's trajectories as games, a 405 k-parameter policy from scratch, two CPU cores.

Command:   evolving-rl data alfred --source=json_2.1.0 --out=runs/alfred/games
           evolving-rl train --config=configs/alfred.py --workdir=runs/alfred/run --config.data.games=runs/alfred/games
Hardware:  two CPU cores, 4 GB of memory; no accelerator
Time:      on one core beside other work 45 minutes of warm start, 8 of training, 2 of panels
Expected:  own skill on valid_seen at temperature 0.3 from 11 to 24 % (mean of two seeds), no skill 8 to 11 %, oracle 46 % both;
           docs/reproduce.md has all arms
"""

from evolving_rl_jax.config import default_config


def get_config():
    """A policy cloned from a player that knows no usual places, and 14 steps: patience wins little."""
    config = default_config()
    config.model.update(
        vocab_size=1400,  # every name of a thing is one token
        numbered_tokens=False,  # skills say the kind of a place: then it is the same word in the action
        hidden_size=96,
        intermediate_size=256,
        num_layers=3,
        num_heads=4,
        num_kv_heads=4,
        qk_norm=True,
    )
    config.rollout.update(
        style="compact",
        num_sources=8,
        num_retrieved=2,
        num_skills=4,
        num_repeats=1,
        max_turn_tokens=20,
        max_skill_tokens=40,
        max_steps=14,
        top_p=1.0,
        num_slots=128,
        max_length=640,
        prefill_buckets=(32, 128),
        decode_window=20,
        column_buckets=(256, 448, 640),
    )
    config.algorithm.update(extractor_weight=1.5, solver_weight=1.0)
    config.algorithm.kl_coef.update(solver=0.2, extractor=0.01)
    config.algorithm.entropy_coef.update(solver=0.0, extractor=0.0)
    config.optimizer.update(
        learning_rate=5e-4, b1=0.9, b2=0.95, weight_decay=0.0, schedule="cosine"
    )
    config.train.update(
        num_iterations=60,
        minibatches=2,
        row_length=640,
        micro_batch_rows=8,
        logprob_chunk=64,
        remat="none",
        log_episodes=2,
    )
    config.warmstart.update(
        enabled=True,
        splits=("train",),
        episodes=8000,
        steps=1600,
        batch_rows=20,
        action_noise=0.03,
        follow_skill=0.85,
        good_extraction=0.6,
    )
    config.eval.update(
        splits=("valid_seen",),
        conditions=("none", "own", "oracle"),
        temperatures=(1.0, 0.3),
    )
    return config
