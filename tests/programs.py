"""Programs that tests start: stand-ins for gcloud and srun, runs of two processes, commands that are watched."""

import stat


def stand_in(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


# Carries out on this machine, as two workers, what it is asked for.
GCLOUD = """
import json, os, pathlib, shutil, subprocess, sys

here = pathlib.Path({here!r})
arguments = sys.argv[1:]
with open(here / "calls.jsonl", "a") as file:
    file.write(json.dumps(arguments) + "\\n")
state = here / "state"
words = [a for a in arguments if not a.startswith("-")]
flags = dict(a[2:].split("=", 1) for a in arguments if a.startswith("--") and "=" in a)
verb = words[3]


def everywhere(function):
    wanted = flags["worker"]
    started = [function(i) for i in range(2) if wanted in ("all", str(i))]
    codes = [p.wait() for p in started]
    sys.exit(max(codes))


def home(i):
    path = here / f"worker{{i}}"
    path.mkdir(exist_ok=True)
    return path


def broken(when):
    # drop.json says once at which words a connection breaks, before or after they are carried out
    file = here / "drop.json"
    drop = json.loads(file.read_text()) if file.exists() else None
    if not drop or drop[0] != when or drop[1] not in flags["command"]:
        return False
    file.unlink()
    return True


def ssh(i):
    environment = os.environ | {{
        "JAX_COORDINATOR_ADDRESS": "127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(i),
    }}
    return subprocess.Popen(["bash", "-c", flags["command"]], cwd=home(i), env=environment)


if verb == "describe":
    if state.exists():
        print(state.read_text())
    else:
        sys.exit("NOT_FOUND")
elif verb == "create":
    state.write_text("ACTIVE")
elif verb == "delete":
    state.unlink()
    for i in range(2):
        shutil.rmtree(home(i))
elif verb == "scp":
    target = words[-1].split(":")[1]
    everywhere(lambda i: subprocess.Popen(["cp", words[-2], home(i) / target]))
elif verb == "ssh":
    if broken("before"):
        sys.exit(255)
    after = broken("after")
    try:
        everywhere(ssh)
    finally:
        if after:
            sys.exit(255)
"""

MEETING = """
import os, pathlib, sys
from evolving_rl_jax.run import hosts as distributed
with distributed.joined(distributed.find(os.environ), start_timeout_s=60) as hosts:
    text = f"met {{hosts.gather(hosts.index)}} of {{hosts.count}}\\n"
    os.write(1, text.encode())  # in one piece
first = pathlib.Path(sys.argv[1])
if first.exists():
    sys.exit(0)
if hosts.first:
    first.write_text("saved")
{after}
"""

SRUN = """
echo "srun $*" >> {here}/calls
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_NUM_TASKS=2 SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=2 SLURM_STEP_NODELIST=127.0.0.1
SLURM_PROCID=1 SLURM_LOCALID=0 "$@" &
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" || first=$?
wait $! || exit $?
exit ${{first:-0}}
"""

SAVING = """
import os, pathlib, signal, sys, time
def stop(*_):
    time.sleep(0.3)
    pathlib.Path(sys.argv[1], "saved").write_text("x")
    os._exit(75)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1], "ready").write_text("x")
time.sleep(60)
"""

# Runs the command and writes down how many iterations were logged before each compilation.
COUNTING = """
import json, pathlib, sys
import jax.monitoring
from evolving_rl_jax.cli.main import main

counts, (out, workdir, *arguments) = [], sys.argv[1:]
metrics = pathlib.Path(workdir) / "metrics.jsonl"


def on_event(name, seconds, **_):
    if name == "/jax/core/compile/backend_compile_duration":
        counts.append(metrics.read_bytes().count(b"\\n") if metrics.exists() else 0)


jax.monitoring.register_event_duration_secs_listener(on_event)
code = main([*arguments, f"--workdir={workdir}"])
pathlib.Path(out).write_text(json.dumps(counts))
sys.exit(code)
"""

ARMS = """
import sys
from evolving_rl_jax.cli.main import main

folder, *arguments = sys.argv[1:]
for arm in ("solver_only", "extractor_only", "grpo"):
    if main([*arguments, f"--workdir={folder}/{arm}", f"--config.algorithm.arm={arm}"]):
        sys.exit(1)
"""

# Runs the command and ends without a word once ten plays are kept.
ENDING = """
import os, sys
from evolving_rl_jax.cli.main import main
from evolving_rl_jax.eval.journal import Journal

add = Journal.add


def add_and_end(self, play):
    add(self, play)
    if len(self.plays) == 10:
        os._exit(9)


Journal.add = add_and_end
sys.exit(main(sys.argv[1:]))
"""
# The same with a notice, as a machine that is taken away sends it.
NOTICE = ENDING.replace("os._exit(9)", "os.kill(os.getpid(), 15)")
