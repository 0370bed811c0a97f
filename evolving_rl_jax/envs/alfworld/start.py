"""Whether a game is won before anything is done: its goal in its initial state, by its own PDDL.

Such games exist in real data: another object of the kind asked for lies in the target already.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evolving_rl_jax.envs.alfworld.engine.facts import Reads
from evolving_rl_jax.envs.alfworld.engine.pddl import (
    load_domain,
    parse_problem,
    quiet,
    relations,
)
from evolving_rl_jax.envs.alfworld.engine.query import World
from evolving_rl_jax.envs.alfworld.engine.schema import compile_goal
from evolving_rl_jax.envs.base import TaskError, one_line

__all__ = ["is_won_at_start"]


def is_won_at_start(game: Mapping[str, Any], name: str) -> bool:
    """Evaluates the goal of a game in its initial state; a few milliseconds.

    Args:
      game: content of ``game.tw-pddl``.
      name: of the game in messages.

    Raises:
      TaskError: its PDDL cannot be read.
    """
    try:
        with quiet():
            domain = load_domain(game["pddl_domain"])
            objects, init, formula = parse_problem(domain, game["pddl_problem"])
            static, start = relations(domain, objects, init)
            goal = compile_goal(domain, formula)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the parser ends malformed text with SystemExit
        raise TaskError(
            f"{name}: must hold PDDL that can be read, found {one_line(error)}"
        ) from error
    world = World(static, {o.name: (o.name, o.type_name) for o in objects}, ())
    world.derived = goal.derived
    state = sum(world.bit(*fact) for fact in sorted(start))
    return bool(goal.query.run(world, state, Reads()))
