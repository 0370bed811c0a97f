"""Our own engine: one game's PDDL and grammar, compiled to Python and played on a set of bits.

Read ``game`` first; below it ``schema`` (a domain), ``query`` (conditions), ``facts`` (what is
remembered), ``text`` (the grammar) and ``pddl`` (the planner's parser).  ``open_game`` of ``game`` is
what the rest of the project imports.  No files, no processes, no C library.
"""
