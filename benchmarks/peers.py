"""Side by side with google-tunix on this machine: sampling, and a training step.

The same shape (Qwen3, random weights, float32), the same numbers of prompts and tokens.  Each library
is a process that compiles once; then they measure in turn, the other one idle, so that whatever else the
machine does meets both.
Tunix lives in a virtual environment of its own, made at the first call; where it cannot be installed
nothing is measured, which is no failure.

Sampling is from the prompts to the last token, temperature 1, after a warm-up: this package's engine,
tunix's ``Sampler``.  A training step is the cross-entropy of all tokens of a batch of prompt plus new
tokens a row, its gradient and AdamW without rematerialisation: ``make_cloning_step`` here, the compiled
step of ``PeftTrainer`` there.

Examples::

    python benchmarks/peers.py
    python benchmarks/peers.py --pairs=1 --layers=2 --hidden=64 --vocab=512
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import venv

HERE = pathlib.Path(__file__).resolve().parent
PEER = "google-tunix==0.1.7"
ENVIRONMENT = HERE.parent / "build" / "peers"  # ignored by git


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--pairs", type=int, default=3, help="turns of both libraries (default: 3)")
    p.add_argument("--repeats", type=int, default=3, help="timed batches of a turn (default: 3)")
    p.add_argument("--steps", type=int, default=5, help="timed steps of a turn (default: 5)")
    for name, value, text in (
        ("layers", 4, "of the model"), ("hidden", 256, "width of the model"),
        ("vocab", 8192, "size of the vocabulary"), ("batch", 8, "rows"),
        ("prompt", 128, "tokens of a prompt"), ("new", 128, "tokens sampled after it"),
    ):  # fmt: skip
        p.add_argument(f"--{name}", type=int, default=value, help=f"{text} (default: {value})")
    p.add_argument("--seed", type=int, default=0, help="of weights, prompts and sampling")
    p.add_argument("--environment", default=str(ENVIRONMENT), metavar="FOLDER",
                   help=f"where {PEER} is or will be installed (default: %(default)s)")  # fmt: skip
    args = p.parse_args(argv)
    for name in (
        "pairs",
        "repeats",
        "steps",
        "layers",
        "hidden",
        "vocab",
        "batch",
        "prompt",
        "new",
    ):
        if getattr(args, name) < 1:
            p.error(f"--{name} must be >= 1, got {getattr(args, name)}")
    if args.hidden % 64:
        p.error(f"--hidden must be a multiple of 64, the size of a head, got {args.hidden}")
    return args


def peer_python(folder: pathlib.Path) -> pathlib.Path | None:
    """The interpreter of an environment with tunix, which is made where it is not; None = cannot be."""
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    found = subprocess.run([python, "-c", "import tunix"], capture_output=True)
    if found.returncode:
        print(f"installing {PEER} into {folder}", file=sys.stderr, flush=True)
        install = [python, "-m", "pip", "install", "--quiet", PEER]
        done = subprocess.run(install, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            print((done.stderr.strip().splitlines() or ["no message"])[-1], file=sys.stderr)
            return None
    return python


def options(args: argparse.Namespace) -> dict:
    """What both sides are told."""
    heads = args.hidden // 64
    shape = {
        "layers": args.layers, "hidden": args.hidden, "mlp": 3 * args.hidden, "vocab": args.vocab,
        "heads": heads, "kv_heads": heads // 2 if heads % 2 == 0 else heads, "head_dim": 64,
    }  # fmt: skip
    names = ("batch", "prompt", "new", "repeats", "steps", "seed")
    return {"shape": shape, **{name: getattr(args, name) for name in names}}


class Side:
    """A library in a process of its own, which measures when it is asked.

    Args:
      command: started with the folder of the options behind it.
      given: the options.
    """

    def __init__(self, command: list[str], given: dict):
        self._name = command[-1]
        self._folder = tempfile.TemporaryDirectory()
        (pathlib.Path(self._folder.name) / "options.json").write_text(json.dumps(given))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([*command, self._folder.name], **pipes)

    @functools.cached_property
    def said(self) -> dict:
        """What it says of itself, once it is warm."""
        return self._read()

    def ask(self, what: str) -> dict:
        """``turn``: seconds of steps, tokens a second of batches; ``parts``: where a step's time goes."""
        _ = self.said  # comes first
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict:
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{self._name} failed with exit code {self._process.wait()}")

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()


def turns(sides: dict[str, Side], pairs: int) -> dict[str, list[dict]]:
    """``pairs`` measurements of each side, in turn, every second pair in the other order."""
    found = {name: [] for name in sides}
    for pair in range(pairs):
        for name in list(sides) if pair % 2 == 0 else list(reversed(sides)):
            found[name].append(sides[name].ask("turn"))
            print(f"pair {pair + 1}: {name} done", file=sys.stderr, flush=True)
    return found


def summary(found: dict[str, list[dict]], given: dict) -> dict:
    """Medians of a side over its turns (each the median of its repeats), and ratios of each pair."""

    def medians(name, what):
        return [statistics.median(one[what]) for one in found[name]]

    tokens = given["batch"] * (given["prompt"] + given["new"])
    result = {"benchmark": "peers", "peer": PEER, **given}
    for what in ("sampling", "training"):
        ours, theirs = medians("ours", what), medians("tunix", what)
        pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
        if what == "training":  # seconds, so the other way round
            pairs = [1 / ratio for ratio in pairs]
        result[what] = {
            "ours": statistics.median(ours),
            "tunix": statistics.median(theirs),
            "ratio": statistics.median(pairs),
            "ratios": pairs,
        }
    seconds = result["training"]
    result["training_tokens_per_second"] = {n: tokens / seconds[n] for n in ("ours", "tunix")}
    return result


def table(result: dict) -> str:
    """The figures for people."""
    shape, lines = result["shape"], []
    lines.append(
        f"Qwen3, {shape['layers']} layers of {shape['hidden']}, vocabulary {shape['vocab']}, "
        f"{result['batch']} rows, {result['prompt']} + {result['new']} tokens, float32"
    )
    lines.append(f"{'':<28}{'ours':>12}{'tunix':>12}{'ratio':>8}   ratio of each pair")
    for what, label in (("sampling", "sampled tokens/s"), ("training", "seconds a training step")):
        row = result[what]
        each = ", ".join(f"{ratio:.2f}" for ratio in row["ratios"])
        lines.append(
            f"{label:<28}{row['ours']:>12.4g}{row['tunix']:>12.4g}{row['ratio']:>8.2f}   {each}"
        )
    shown = ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in result["parts"].items())
    lines.append(f"a training step of ours, each part compiled alone: {shown}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Prints the table and, last, one line of JSON."""
    args = parse_arguments(argv)
    python = peer_python(pathlib.Path(args.environment))
    if python is None:
        print(f"{PEER} cannot be installed here: nothing was measured")
        return 0
    given, sides = options(args), {}
    commands = {"ours": [sys.executable], "tunix": [str(python)]}
    try:
        for name, command in commands.items():
            sides[name] = Side([*command, str(HERE / f"peers_{name}.py")], given)
        said = {name: side.said for name, side in sides.items()}  # both are warm
        result = summary(turns(sides, args.pairs), given)
        for what in ("versions", "parameters"):
            result[what] = {name: words[what] for name, words in said.items()}
        result["parts"] = sides["ours"].ask("parts")
    finally:
        for side in sides.values():
            side.close()
    print(table(result))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
