"""``evolving-rl train``."""

from __future__ import annotations

from evolving_rl_jax.cli.options import add_hosts, check_alike, joined_hosts
from evolving_rl_jax.config import load_config


def add(commands) -> None:
    """The options."""
    p = commands.add_parser(
        "train",
        help="train a policy; goes on by itself when the run folder holds a checkpoint",
        description="Trains the policy of a config file in a run folder.  Started again with the same "
        "folder, it goes on from the last checkpoint.",
        epilog="Any key can be overridden: --config.train.num_iterations=20 --config.algorithm.arm=grpo",
    )
    p.add_argument("--config", required=True, metavar="FILE", help="Python file with get_config()")
    p.add_argument(
        "--workdir", required=True, metavar="DIR", help="run folder; made if it is not there"
    )
    add_hosts(p)


def run(args, overrides: dict[str, str]) -> None:
    """Trains, from the last checkpoint if there is one."""
    from evolving_rl_jax.record.tracking import check_wandb
    from evolving_rl_jax.run.folder import RunFolder
    from evolving_rl_jax.run.hosts import shared_notices
    from evolving_rl_jax.run.parts import open_parts, training_mesh
    from evolving_rl_jax.run.preemption import Preemption

    config = load_config(args.config, overrides)
    check_wandb(config.train.wandb)
    with (
        Preemption() as preemption,
        joined_hosts(args, config) as hosts,
        shared_notices(hosts, preemption),
    ):
        folder = RunFolder(args.workdir, config, writes=hosts.first)
        check_alike(hosts, config, folder)
        with folder.hold():  # first: whoever trains there may have the devices too
            training_mesh(config, hosts)  # refused before anything is written
            with open_parts(config, folder, hosts, preemption) as parts:
                from evolving_rl_jax.train.loop import train

                train(parts)
