"""``python -m evolving_rl_jax`` is the same as the ``evolving-rl`` command."""

from evolving_rl_jax.cli import main

if __name__ == "__main__":
    main()
