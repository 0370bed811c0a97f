"""Scripts that solve families of pages by what an agent reads: the teachers of a warm start.

Each is a generator: ``script(task, page)`` yields actions and is sent the page that each of them led to.
``view`` is what they see, ``clicks``, ``forms`` and ``apps`` are the scripts, ``SCRIPTS`` says whose each is.
Must not import: anything outside this folder but ``envs.web``.
"""

from evolving_rl_jax.envs.miniwob.solvers.apps import APPS
from evolving_rl_jax.envs.miniwob.solvers.clicks import CLICKS
from evolving_rl_jax.envs.miniwob.solvers.forms import FORMS
from evolving_rl_jax.envs.miniwob.solvers.view import Lost, Script, View

__all__ = ["SCRIPTS", "Lost", "Script", "View"]

# Family -> its script.
SCRIPTS = {**CLICKS, **FORMS, **APPS}
