"""ScienceWorld (arXiv 2203.07540): 30 kinds of elementary science tasks in a simulator on the JVM.

``game`` starts and ends the simulator, ``env`` plays it, ``index`` writes down the tasks of a run,
``teacher`` and ``texts`` are for the warm start and the prompts, ``benchmark`` puts them together.
Needs the extra ``scienceworld`` and Java.
"""
