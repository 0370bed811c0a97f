"""``python -m evolving_rl_jax`` and ``evolving-rl``; both say in one line which package is missing."""

import sys

_EXTRAS = {"wandb": "wandb", "libtpu": "tpu"}  # {package: extra}; the others come with `train`


def main() -> int:
    """Runs the command; the base install, jax and numpy, is enough for the losses alone."""
    try:
        from evolving_rl_jax.cli.main import main as command

        return command()
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in ("", "evolving_rl_jax"):
            raise
        extra = _EXTRAS.get(package, "train")
        print(
            f"evolving-rl: the package {package} must be installed (it comes with "
            f"the extra {extra}: pip install -e '.[{extra}]'), found none",
            file=sys.stderr,
        )
        return 2


if __name__ == "__main__":
    sys.exit(main())
