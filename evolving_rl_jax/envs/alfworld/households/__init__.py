"""Generated household games: who lives where, what is played there, and the files of it.

``homes`` makes households, in the compact room or in the rooms of ``scenes``; ``plan`` says which
games they consist of, ``problem`` words one in PDDL, ``write`` proves each and writes it.  Import
``GamesSpec`` and ``plan_games`` from ``plan``, ``generate_games`` and ``generate_even`` from
``write``.  Everything follows from a seed.
"""
