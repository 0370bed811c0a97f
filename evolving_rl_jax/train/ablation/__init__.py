"""Every arm with every seed.

``run`` trains and crosses, ``side_by_side`` does independent commands on shares of the cores, ``summary``
makes the tables.  The command line imports ``run``; nothing else of the package imports this room, and
``side_by_side`` knows nothing of training.
"""
