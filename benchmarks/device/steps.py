"""What to measure on an accelerator, most valuable first: each step a process with its own time limit.

Started by `run.sh`.  A step's result is one line of OUT/results.jsonl, written as soon as the step
ends, and everything that it printed is OUT/STEP.log (in OUT/logs.tgz at the end), tracebacks included; a
step that fails or runs out of time does not stop the next ones.  ``--cpu`` runs the same steps at toy size, so that the file
cannot rot unseen.

A part fits into nine minutes whatever its steps do: a machine may be lent for ten at a time.

Example::

    benchmarks/device/run.sh --out=/tmp/device            # part 1
    benchmarks/device/run.sh --part=2 --out=/tmp/device
    benchmarks/device/run.sh --cpu --only=tests,train_0.5b
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tarfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LEFT = "SECONDS"  # stands in a command for its limit less `_TO_END`
KIT = ROOT / ".device"  # what prepare.sh collected
TOTAL = 540  # seconds of a part
_GRACE = 5  # seconds of a step's limit in which it is told to end
_TO_END = 30  # seconds in which a run that was told to end saves, is killed, and is read
# A program of the engine is 30 unrolled layers, and each shape is one: with the buckets of the file there are 30 of
# them before the first panel.
_FEW_SHAPES = (
    "--config.rollout.row_buckets=(256,)", "--config.rollout.column_buckets=(512,)",
    "--config.rollout.prefill_buckets=(64,)", "--config.env.num_workers=14",
    "--config.warmstart.episodes=800", "--config.eval.num_games=32", "--config.eval.every=0",
    "--config.train.num_iterations=6",
)  # fmt: skip
_TAIL = 1500  # characters of a failed step's output that its line quotes


@dataclasses.dataclass(frozen=True)
class Step:
    """One measurement.

    Attributes:
      name: of its line and its log.
      limit: seconds.
      command: after the interpreter, on the device.
      toy: the same on a CPU, at a size that ends in seconds; empty = nothing to do there.
      needs: a path under the kit without which the step is skipped.
      environment: of its process, beside that of `run.sh`.
      part: in which it runs; the limits of a part add up to ``TOTAL`` at most.
    """

    name: str
    limit: int
    command: tuple[str, ...]
    toy: tuple[str, ...] = ()
    needs: str = ""
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    part: int = 1


def _tests(*names: str, processes: int = 0) -> tuple[str, ...]:
    files = [f"tests/test_{name}.py" for name in names]
    return (
        "-m",
        "pytest",
        f"-n{processes}",
        "--verbose",  # what had passed is seen where time runs out
        "--tb=short",
        "-rfE",
        "--override-ini=addopts=",
        "-p",
        "no:cacheprovider",
        "-m",
        "not slow",
        "--maxfail=25",
        *files,
    )


def _train_step(preset: str, attention: str, *options: str) -> tuple[str, ...]:
    return ("benchmarks/train_step.py", f"--preset={preset}", f"--attention={attention}", *options)


def _run(config: str, out: pathlib.Path, *options: str) -> tuple[str, ...]:
    # Beside it: a lease returns few files.
    workdir = f"--workdir={out.with_name(out.name + '-run')}"
    return ("benchmarks/device/run_and_read.py", f"--config={config}", workdir, *options)


def steps(out: pathlib.Path) -> list[Step]:
    """All steps in order; the first ones decide what later ones can be believed."""
    gpu_tests = _tests(
        "models_attention_kernels", "models_attention", "generate_engine", "losses_golden",
        "losses_logprobs", "models_transformer", "generate_sampling", "update_step", "losses_policy",
        processes=8,
    )  # fmt: skip
    # Their bounds are those of float32 (a GPU multiplies in 10 bits of mantissa unless told otherwise) and of
    # sums in one order; the flags that they set for a CPU would test kernels that were not optimised.
    exact = {
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "XLA_FLAGS": "--xla_gpu_deterministic_ops=true",
    }
    half, large = "qwen2.5-0.5b", "qwen2.5-1.5b"
    toy_train = _train_step("tiny", "auto", "--steps=1", "--rows=2", "--row-length=64")
    toy_run = _run("configs/debug.py", out, "--config.train.num_iterations=1",
                   "--config.eval.num_games=2")  # fmt: skip
    model = f"--config.model.hf_path={KIT / 'model' / 'model.gguf'}"
    memory = "benchmarks/device/memory.py"
    generation = ("benchmarks/generation.py", f"--preset={large}")
    return [
        Step("tests", 110, gpu_tests, _tests("losses_golden"), environment=exact),
        Step("train_0.5b", 75, _train_step(half, "auto"), toy_train),
        # `auto` is `blockwise` on a GPU: which of the two it should be is what these steps decide.
        Step("train_0.5b_pallas_gpu", 60, _train_step(half, "pallas_gpu", "--steps=3")),
        Step("generation_1.5b", 110, generation,
             ("benchmarks/generation.py", "--skip-episodes", "--steps=1")),
        Step("memory_1.7b", 90, (memory, "--shape=configs/models/Qwen3-1.7B.json",
             "--rows=4", "--row-length=8192"),
             (memory, "--shape=benchmarks/tiny_model.json", "--rows=2", "--row-length=64")),
        Step("memory_7b_lora", 90, (memory, "--shape=configs/models/Qwen2.5-7B-Instruct.json",
             "--rows=1", "--row-length=8192", "--lora-rank=32")),
        Step("smollm2", 300, _run("configs/smollm2.py", out, model, f"--limit={LEFT}", *_FEW_SHAPES),
             toy_run, needs="model/model.gguf", part=2),
        # What part 1 compiled is in the compilation cache, where the machine is still the same.
        Step("torch_0.5b", 130, _train_step(half, "auto", "--compare-torch"), part=2),
        Step("torch_generation", 110, (*generation, "--compare-torch"), part=2),
        Step("torch_1.5b", 240, _train_step(large, "auto", "--compare-torch", "--steps=3"), part=3),
        Step("train_1.5b_pallas_gpu", 120, _train_step(large, "pallas_gpu", "--steps=3"), part=3),
    ]  # fmt: skip


def run_step(step: Step, command: tuple[str, ...], limit: float, out: pathlib.Path) -> dict:
    """Runs one step and returns its line; its children end with it."""
    began = time.monotonic()
    command = tuple(x.replace(LEFT, str(max(1, int(limit) - _TO_END))) for x in command)
    with (out / f"{step.name}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True, env={**os.environ, **step.environment},
        )  # fmt: skip
        try:
            code: int | str = process.wait(timeout=max(1.0, limit - _GRACE))
        except subprocess.TimeoutExpired:
            code = "time limit"
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)  # it may say how far it came
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_GRACE)
        finally:
            # The group is gone already where the step ended by itself.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    text = (out / f"{step.name}.log").read_text(encoding="utf-8", errors="replace")
    line = {"step": step.name, "ok": code == 0, "code": code}
    line["seconds"] = round(time.monotonic() - began, 1)
    result = last_json(text)
    if result is not None:
        line["result"] = result
    if code != 0 or result is None:
        line["tail"] = text[-_TAIL:]
    return line


def last_json(text: str) -> dict | None:
    """The last line of ``text`` that is a JSON object."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            # A brace alone is code that a compiler printed when it failed.
            with contextlib.suppress(json.JSONDecodeError):
                return json.loads(line)
    return None


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/device"),
                   help="folder of the results (default: runs/device)")  # fmt: skip
    p.add_argument("--cpu", action="store_true", help="toy sizes, on the CPU")
    p.add_argument("--part", type=int, help="which steps (default: 1; with --cpu all)")
    p.add_argument("--only", default="", help="names of steps, with commas, of any part")
    args = p.parse_args(argv)
    known = [s.name for s in steps(args.out)]
    parts = sorted({s.part for s in steps(args.out)})
    if args.part is not None and args.part not in parts:
        p.error(f"--part must be one of {', '.join(map(str, parts))}, got {args.part}")
    args.only = [name for name in args.only.split(",") if name]
    unknown = sorted(set(args.only) - set(known))
    if unknown:
        p.error(f"--only must name steps out of {', '.join(known)}, got {', '.join(unknown)}")
    return args


def chosen(args: argparse.Namespace) -> list[Step]:
    """The steps that the command line names: by name, or of a part."""
    every = steps(args.out.resolve())
    if args.only:
        return [s for s in every if s.name in args.only]
    part = args.part or (None if args.cpu else 1)
    return [s for s in every if part in (None, s.part)]


def main(argv: list[str] | None = None) -> int:
    """Runs the steps; 1 when one of them failed, 0 when all passed or were skipped."""
    args = parse_arguments(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.cpu:
        os.environ["JAX_PLATFORMS"] = "cpu"
    end, failed = time.monotonic() + TOTAL * (3 if args.cpu else 1), 0
    with (args.out / "results.jsonl").open("a", encoding="utf-8") as results:
        for step in chosen(args):
            command = step.toy if args.cpu else step.command
            if not command:
                continue
            left = end - time.monotonic()
            if not args.cpu and step.needs and not (KIT / step.needs).exists():
                line = {"step": step.name, "skipped": f".device/{step.needs} is not here"}
            elif left < 10:
                line = {"step": step.name, "skipped": f"the {TOTAL} s of a part are over"}
            else:
                slack = 6 if args.cpu else 1  # toy sizes on a machine that does other work too
                line = run_step(step, command, min(step.limit * slack, left), args.out)
            failed += line.get("ok") is False
            for stream in (results, sys.stdout):
                print(json.dumps(line), file=stream, flush=True)
    pack_logs(args.out)
    return int(failed > 0)


def pack_logs(out: pathlib.Path) -> None:
    """Puts the logs of all steps into OUT/logs.tgz: a lease returns few files."""
    logs = sorted(out.glob("*.log"))
    with tarfile.open(out / "logs.tgz", "w:gz") as pack:
        for log in logs:
            pack.add(log, log.name)
    for log in logs:
        log.unlink()


if __name__ == "__main__":
    sys.exit(main())
