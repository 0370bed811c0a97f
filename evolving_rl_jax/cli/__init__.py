"""The ``evolving-rl`` command: one file a subcommand, each its arguments and one call.

``main`` is the table of them.  A file has ``add(commands)``, its options, and ``run(args, overrides)``,
which imports what the command needs when it runs, so that ``--help`` is instant.  What a command
does lies in the rooms below; nothing imports from here.
"""
