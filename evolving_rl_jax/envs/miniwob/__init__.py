"""MiniWoB++ (github.com/Farama-Foundation/miniwob-plusplus): small web tasks, played in a real Chromium.

``chromium`` finds the browser and its driver, ``browser`` runs one for all episodes of a process, with
``clock.js`` in every page and ``page.js`` around them, ``env`` plays, ``families`` says what is played and what is
not, ``index`` writes down the tasks of a run, ``solvers``, ``teacher``, ``skills`` and ``corpus`` are for the warm
start, ``texts`` for the prompts, ``benchmark`` puts them together.  Needs the extra ``miniwob`` and Chromium.
"""
