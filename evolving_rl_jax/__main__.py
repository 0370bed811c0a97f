"""``python -m evolving_rl_jax`` is the same as the ``evolving-rl`` command."""

import sys

from evolving_rl_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
