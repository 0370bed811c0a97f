"""A training run within a time limit, and what it left behind: time by stage, curves, panels.

A run that is stopped by the limit has ``GRACE`` seconds to save, then it is killed; whatever is in its
folder is read and printed in any case.  The last line is JSON.
Options other than these go to ``evolving-rl train``.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import signal
import statistics
import subprocess
import sys
import time

GRACE = 20  # seconds between SIGTERM and SIGKILL


def records_of(file: pathlib.Path) -> list[dict]:
    """The records of a file of JSON lines; a last line that was cut short is left out."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


def train(command: list[str], limit: float) -> int | str:
    """The run's exit status; "killed" where it went on for ``GRACE`` seconds after ``limit``."""
    process = subprocess.Popen(command)
    try:
        return process.wait(timeout=limit or None)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(timeout=GRACE)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()
        return "killed"


def shares(records: list[dict]) -> dict[str, float]:
    """Median share of each ``time/`` metric in an iteration's seconds."""
    timed = [r for r in records if r.get("time/total")]
    names = {n for r in timed for n in r if n.startswith("time/") and n != "time/total"}
    return {
        name.removeprefix("time/"): round(
            statistics.median(r.get(name, 0.0) / r["time/total"] for r in timed), 5
        )
        for name in sorted(names)
    }


def panels(folder: pathlib.Path) -> dict[str, object]:
    """The tables of every panel that the run wrote."""
    found = {}
    for file in sorted((folder / "eval").glob("*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        found[file.stem] = content.get("summary") or content.get("cells") or sorted(content)
    return found


def main() -> int:
    """Trains until the end or the limit, then reads."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--config", required=True)
    p.add_argument("--workdir", type=pathlib.Path, required=True)
    p.add_argument("--limit", type=float, default=0, help="seconds until SIGTERM; 0 = none")
    args, options = p.parse_known_args()
    command = [sys.executable, "-m", "evolving_rl_jax", "train", f"--config={args.config}"]
    began = time.monotonic()
    code = train([*command, f"--workdir={args.workdir}", *options], args.limit)
    records = records_of(args.workdir / "metrics.jsonl")
    result = {
        "benchmark": "run", "config": args.config, "code": code,
        "seconds": round(time.monotonic() - began, 1), "records": len(records),
        "warmstart": records_of(args.workdir / "warmstart" / "log.jsonl"),
        "time_shares": shares(records), "panels": panels(args.workdir),
        "win_rates": [r["rollout/win_rate"] for r in records if "rollout/win_rate" in r],
    }  # fmt: skip
    print(json.dumps(result))
    # 75: stopped by the limit after it had saved.
    return 0 if code in (0, 75) and records else 1


if __name__ == "__main__":
    sys.exit(main())
