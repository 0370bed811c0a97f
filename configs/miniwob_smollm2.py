"""Small web tasks in a real browser (MiniWoB++) for SmolLM2-135M-Instruct, in whose sentences they are written.

Command:   evolving-rl train --config=configs/miniwob_smollm2.py --workdir=runs/miniwob-smollm2
           `make smollm2` fetches and imports the model.
Hardware:  one 80 GB GPU, and Chromium with its driver on the same machine (docs/miniwob.md); or two CPU cores and 10 GB of memory with
           --config.model.dtype=float32 --config.data.miniwob.train_seeds=1200 --config.env.num_workers=1
           --config.rollout.num_sources=4 --config.rollout.num_retrieved=2 --config.rollout.num_slots=64
           --config.train.num_iterations=12 --config.train.micro_batch_rows=1 --config.optimizer.learning_rate=3e-5
           --config.warmstart.steps=60 --config.warmstart.batch_rows=2 --config.warmstart.episodes=500
           --config.warmstart.held_out=0.05 --config.warmstart.every=20 --config.eval.num_games=24
Time:      GPU: not measured.  CPU: 31 minutes of cloning and 16 for the panels on one of two shared cores; training was not run
Expected:  CPU, after the warm start: 71 % of other pages of the same families, 21 % of other families, without skills (docs/miniwob.md)
"""

from evolving_rl_jax.config import default_config


def get_config():
    """All weights are trained, in the compact form."""
    config = default_config()
    config.env.update(name="miniwob", snapshot_tokens=400)
    config.data.train_types = config.data.miniwob.families
    config.model.update(hf_path="runs/smollm2/SmolLM2-135M-Instruct", dtype="bfloat16")
    config.rollout.update(
        style="compact",
        context="recent",
        recent_turns=0,
        num_sources=8,
        num_retrieved=4,
        num_skills=4,
        num_repeats=1,
        max_turn_tokens=32,
        max_skill_tokens=64,
        max_steps=10,
        top_p=1.0,
        num_slots=128,
        max_length=1024,
        prefill_buckets=(64, 512),
        column_buckets=(512, 1024),
    )
    config.skills.update(prefer="group", audit_leakage=True)
    config.algorithm.update(extractor_weight=1.5, solver_weight=1.0)
    config.algorithm.kl_coef.update(solver=0.2, extractor=0.01)
    config.algorithm.entropy_coef.update(solver=0.0, extractor=0.0)
    config.optimizer.update(learning_rate=1.5e-5, b1=0.9, b2=0.95, weight_decay=0.0)
    config.train.update(
        num_iterations=40,
        minibatches=2,
        row_length=1024,
        micro_batch_rows=8,
        remat="none",
        log_episodes=2,
    )
    config.warmstart.update(
        enabled=True,
        splits=("train",),
        episodes=1500,
        steps=100,
        batch_rows=32,
        learning_rate=2e-4,
        held_out=0.1,
        every=20,
        action_noise=0.02,
        good_extraction=0.6,
    )
    config.eval.update(
        splits=("test_task", "test_family"), conditions=("none", "own"), temperatures=(1.0,)
    )
    return config
