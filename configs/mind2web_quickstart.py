"""The whole loop on web tasks: generated sites, a 150 k-parameter policy from scratch, two CPU cores.

Command:   evolving-rl train --config=configs/mind2web_quickstart.py --workdir=runs/web
Hardware:  two CPU cores, 4 GB of memory; no accelerator, no network
Time:      9 minutes on both cores as two devices (XLA_FLAGS=--xla_force_host_platform_device_count=2)
Expected:  own skill at temperature 1, two seeds: test_task 13 and 9 -> 39 and 19 %, test_website 11 and 10 -> 28 and 19 %,
           test_domain 9 and 11 -> 20 and 17 %; skills state 0.45 and 0.47 -> 0.77 and 0.72 of what was revealed (docs/mind2web.md)
"""

from evolving_rl_jax.config import default_config


def get_config():
    """Laptop sizes; everything else as in the defaults."""
    config = default_config()
    config.env.update(name="mind2web", protocol="stop_at_error", snapshot_tokens=200)
    # Every field has its label beside it as a text, every row is a group with a text: twice the tokens.
    config.env.elements = "controls"
    config.data.train_types = ("Shopping", "Travel")
    # So many sites that none is met often enough to be known by heart: skills are what helps.
    # Nor any whose lessons tell its habits by its name.
    config.data.sites.update(num_train=400, tasks_per_site=9, warmstart_sites=3400)
    config.data.sites.tasks_per_warmstart_site = 2
    config.model.update(hidden_size=64, intermediate_size=192, num_layers=2)
    config.model.update(num_heads=4, num_kv_heads=4, qk_norm=True)
    # A skill says "left", a page "left 7": one word in both.
    config.model.update(vocab_size=1024, numbered_tokens=False)
    config.rollout.update(
        style="compact",
        context="recent",  # a sequence for every step: task, page and earlier actions
        recent_turns=0,
        num_sources=8,
        num_retrieved=4,
        num_skills=8,
        num_repeats=1,
        max_turn_tokens=16,
        max_skill_tokens=40,
        max_steps=4,
        num_source_episodes=3,  # one failure says little of three choices
        extraction_lines=1,  # what was acted on
        top_p=1.0,
        num_slots=256,
        max_length=384,
        prefill_buckets=(64, 192),
        decode_window=8,
        column_buckets=(128, 384),
    )
    config.skills.prefer = "group"  # sentences do not name their site
    config.algorithm.update(extractor_weight=1.5, solver_weight=1.0)
    config.algorithm.kl_coef.update(solver=0.2, extractor=0.01)
    config.algorithm.entropy_coef.update(solver=0.0, extractor=0.0)
    config.optimizer.update(
        learning_rate=1e-3, b1=0.9, b2=0.95, weight_decay=0.0, schedule="cosine"
    )
    config.train.update(
        num_iterations=76,
        minibatches=2,
        row_length=384,
        micro_batch_rows=8,
        logprob_chunk=64,
        remat="none",
        log_episodes=2,
    )
    config.warmstart.update(
        enabled=True,
        episodes=6000,
        steps=1900,
        batch_rows=20,
        extraction_share=0.4,
        good_extraction=0.5,
        learning_rate=6e-3,
        action_noise=0.02,
        follow_skill=0.9,
    )
    config.eval.update(splits=("test_task", "test_website", "test_domain"), temperatures=(1.0,))
    return config
