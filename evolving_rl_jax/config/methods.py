"""Keys of what kindred methods add to the loop, see docs/methods.md; `defaults` puts them in their place."""

from __future__ import annotations

from evolving_rl_jax.config.accepted import Accepted, Key, above_0, least_0, least_1, one_of, share

# Further sequences of an update, each with an advantage that is given; docs/methods.md.  A weight is
# that of one of them beside an advantage of 1 (0 = off).
REPLAY = {
    "sequences": least_0(0),  # most of them an iteration, shared evenly by the kinds that are on
    "kl_coef": least_0(0.0),  # of their tokens
    "wins": {  # of earlier iterations, worth what they exceed the median of recent groups by
        "weight": least_0(0.0),
        "min_advantage": least_0(1.0),  # in their group, to be stored: standard deviations
        "max_age": least_1(5),  # iterations
        "capacity": least_1(2048),
        "baselines": least_1(10240),  # groups that the median is over
        "ramp": least_0(0),  # iterations in which the weight rises from 0 (0 = at once)
    },
    "guided": {  # plays with a skill, as they read without it
        "weight": least_0(0.0),
        "signal": one_of("wins", "advantage"),  # wins by their likelihood | all by their advantage
    },
    # Skills won with by at least this share, of sources with wins and losses.
    "skills": {"weight": least_0(0.0), "min_reward": share(0.5)},
    "extractions": {  # of earlier iterations, paid from -1 (all plays lost) to 1
        "weight": least_0(0.0),
        "cooldown": least_0(1),  # iterations before one is trained on again
        "exponent": least_0(1.0),  # drawn in proportion to (1 + times trained on) to minus this
        "capacity": least_1(2048),
    },
}

STEP_CREDIT = {  # of the solver's turns, beside the advantage of their episode (GiGPO)
    "weight": least_0(0.0),  # 0 = off
    "discount": share(0.95),  # of a reward, for every turn until it comes
    # Turns are compared that read the same (1), or whose texts have at least this ratio of difflib.
    "similarity": share(1.0),
}

CURRICULUM = {  # which source tasks are taken
    "kind": one_of("none", "bandit"),  # a permutation of all | kinds of tasks by what they taught
    "by": one_of("task_type", "group"),  # what a kind is: the type | the object@household, the site
    "rate": share(0.5),  # how much of a value the newest plays make
    "temperature": above_0(1.0),  # kinds are drawn with p ~ exp(value / this)
}

_GROUP = Accepted("0, or >= 2 (a group of one play has no advantage)", lambda x: x == 0 or x >= 2)

GUIDANCE = {  # plays of the retrieved tasks beside those of the new skills, each kind a group of its own
    "free_repeats": Key(0, _GROUP),  # of each task, without a skill
    "repeats": Key(
        0, _GROUP
    ),  # of each task, with what the run's own bank has for it (0 = no bank)
    "top": least_1(1),  # skills in a prompt
    # wins a use, towards 1/2 | moving average of +-1 | less what plays without it won | learned
    "value": one_of("laplace", "ema", "gain", "head"),
    "rate": share(0.3),  # of the moving average
    "candidates": least_1(5),  # that similarity leaves to choose from (see skills.min_similarity)
    "weight": share(0.5),  # of the value in that choice; the rest is similarity
    "diversity": least_0(0.0),  # what log(1 + uses) takes from a score
    "capacity": least_1(20000),  # skills; a new one must be worth more than the worst
    "min_uses": least_1(5),  # before a skill is removed for being worth less than
    "min_value": Key(-1.0, Accepted("in [-1, 1]", lambda x: -1 <= x <= 1)),  # this (-1 = never)
}
