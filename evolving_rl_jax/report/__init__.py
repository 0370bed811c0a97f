"""The report of runs: one HTML page that needs nothing else, and the console's table of success.

``readers`` reads run folders, ``results``, ``charts``, ``skills`` and ``viewer`` prepare what ``page`` hands to the
templates.  Reads files only: no environment, no model, no jax.  A missing or damaged file becomes
a sentence on the page.
"""
