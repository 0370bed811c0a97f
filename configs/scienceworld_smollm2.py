"""ScienceWorld for SmolLM2-135M-Instruct: four short kinds of tasks, graded scores.

Command:   evolving-rl train --config=configs/scienceworld_smollm2.py --workdir=runs/science-smollm2
           `make smollm2` fetches and imports the model; needs the extra scienceworld and Java.
Hardware:  one 80 GB GPU, and 32 Java processes beside it
Time:      not measured
Expected:  not measured: no run of this file has been made
"""

from evolving_rl_jax.config import default_config


def get_config():
    """All weights are trained, in the compact form."""
    config = default_config()
    config.env.update(name="scienceworld", num_workers=32)  # episodes at a time
    config.data.train_types = config.data.scienceworld.types
    config.model.update(hf_path="runs/smollm2/SmolLM2-135M-Instruct", dtype="bfloat16")
    config.rollout.update(
        style="compact",
        num_sources=8,
        num_retrieved=4,
        num_skills=4,
        num_repeats=1,
        max_turn_tokens=24,
        max_skill_tokens=100,
        max_steps=20,
        top_p=1.0,
        num_slots=32,
        max_length=2048,
        prefill_buckets=(64, 512),
        column_buckets=(1024, 2048),
    )
    config.skills.update(prefer="group")
    config.algorithm.update(extractor_weight=1.5, solver_weight=1.0)
    config.algorithm.kl_coef.update(solver=0.2, extractor=0.01)
    config.algorithm.entropy_coef.update(solver=0.0, extractor=0.0)
    config.optimizer.update(learning_rate=1.5e-5, b1=0.9, b2=0.95, weight_decay=0.0)
    config.train.update(
        num_iterations=40,
        minibatches=2,
        row_length=2048,
        micro_batch_rows=4,
        remat="none",
        log_episodes=2,
    )
    config.warmstart.update(
        enabled=True,
        splits=("train",),
        episodes=800,
        steps=100,
        batch_rows=16,
        learning_rate=2e-4,
        held_out=0.1,
        every=20,
        action_noise=0.02,
        good_extraction=0.6,
    )
    config.eval.update(splits=("dev",), conditions=("none", "own"), temperatures=(1.0,))
    return config
