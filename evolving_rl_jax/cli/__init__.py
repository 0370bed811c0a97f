"""The ``evolving-rl`` command: one file a subcommand."""
