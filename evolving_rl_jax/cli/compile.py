"""``evolving-rl compile``."""

from __future__ import annotations

import os

from evolving_rl_jax.config import load_config

# Read by jax, its plugins and libtpu when they start: this process compiles only, next to others perhaps, and must
# not look for devices.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# Of no consequence for a program that is only compiled; unset, the compilers complain.
_QUIET = {
    "TPU_ACCELERATOR_TYPE": "v5p-32",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",  # XLA says which kernels it could tune better with a GPU at hand
}


def add(commands) -> None:
    """The options."""
    p = commands.add_parser(
        "compile",
        help="does a configuration fit a TPU slice or a GPU; needs neither",
        description="Compiles the train step and the generation functions for a TPU slice or for GPUs and "
        "prints the memory and arithmetic of a device.  Exit code 1 when it does not fit.",
        epilog="Any key can be overridden: --config.mesh.tensor=4 --config.rollout.num_slots=8",
    )
    p.add_argument("--config", required=True, metavar="FILE", help="Python file with get_config()")
    p.add_argument(
        "--topology",
        required=True,
        metavar="NAME",
        help="a slice: v4:2x2x2, v5e:4x4, v5p:2x2x4, v6e:2x4, ...; or one GPU: h100:1, h200:1, a100:1, "
        "l4:1, rtx4090:1",
    )


def run(args, overrides: dict[str, str]) -> int:
    """Prints the report."""
    config = load_config(args.config, overrides)
    os.environ.update({**_QUIET, **os.environ, **_ENVIRONMENT})
    from evolving_rl_jax.aot.check import check
    from evolving_rl_jax.aot.report import render

    report = check(config, args.config, args.topology)
    print(render(report))
    return 0 if report.fits else 1
