"""ScienceWorld on a laptop: three short kinds of tasks, graded scores, a policy from scratch, two CPU cores.

Command:   evolving-rl train --config=configs/scienceworld.py --workdir=runs/science
           needs the extra scienceworld and Java; for a language model: configs/scienceworld_smollm2.py
Hardware:  two CPU cores, 8 GB of memory; no accelerator
Time:      23 minutes on one core beside other work: 1 of writing tasks, 3 of demonstrations, 10 of cloning, 7 of training, 2 of panels
Expected:  no gain: the training variations are learned by heart, new ones are not won (docs/reproduce.md)
"""

from evolving_rl_jax.config import default_config


def get_config():
    """Skills come from another variation of the same kind of task; the panel plays new variations."""
    config = default_config()
    config.env.update(name="scienceworld", num_workers=6)  # a Java process each: episodes at a time
    config.data.scienceworld.update(
        types=("find-plant", "find-animal", "find-non-living-thing"), variations=25
    )
    config.data.train_types = config.data.scienceworld.types
    config.skills.prefer = "group"
    config.model.update(
        vocab_size=1200,
        numbered_tokens=False,
        hidden_size=64,
        intermediate_size=192,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4,
        qk_norm=True,
    )
    config.rollout.update(
        style="compact",
        num_sources=6,
        num_retrieved=2,
        num_skills=4,
        num_repeats=1,
        max_steps=14,
        max_turn_tokens=24,
        max_skill_tokens=100,
        top_p=1.0,
        num_slots=64,
        max_length=960,
        prefill_buckets=(64, 256),
        decode_window=24,
        column_buckets=(480, 960),
    )
    config.algorithm.update(extractor_weight=1.5, solver_weight=1.0)
    config.algorithm.kl_coef.update(solver=0.1, extractor=0.01)
    config.algorithm.entropy_coef.update(solver=0.0, extractor=0.0)
    config.optimizer.update(
        learning_rate=3e-4, b1=0.9, b2=0.95, weight_decay=0.0, schedule="cosine"
    )
    config.train.update(
        num_iterations=40,
        row_length=960,
        micro_batch_rows=4,
        logprob_chunk=64,
        remat="none",
        log_episodes=2,
    )
    config.warmstart.update(
        enabled=True, splits=("train",), episodes=800, steps=1500, batch_rows=8, action_noise=0.05
    )
    config.eval.update(splits=("dev",), conditions=("none", "own"), temperatures=(1.0, 0.3))
    return config
