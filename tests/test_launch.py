"""The launch scripts: shellcheck, dry runs against stored command lines, and runs on stand-ins.

The stand-ins for gcloud, srun and kubectl write down how they were called and carry it out on this
machine, as two workers.  After a wanted change: ``UPDATE_GOLDEN=1 pytest tests/test_launch.py``.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent import futures

import pytest
from conftest import ROOT
from programs import GCLOUD, MEETING, SAVING, SRUN, stand_in

LAUNCH = ROOT / "launch"
GOLDEN = pathlib.Path(__file__).parent / "golden" / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])
OWN = re.compile(
    r"TPU_|SLURM_|JAX_|XLA_|LIBTPU|CUDA_|RESTART|DRY_RUN|COORDINATOR|MACHINE|PROCESSES"
)


def call(*command, path=None, cwd=ROOT, timeout=120, **variables):
    """Runs a script with none of this machine's own settings."""
    env = {k: v for k, v in os.environ.items() if not OWN.match(k)}
    if path:
        env["PATH"] = f"{path}:{env['PATH']}"
    return subprocess.run(
        ["bash", *map(str, command)],
        env=env | {k: str(v) for k, v in variables.items()},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_shellcheck():
    shellcheck = shutil.which("shellcheck") or pathlib.Path(sys.executable).with_name("shellcheck")
    if not pathlib.Path(shellcheck).exists():
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(
        [shellcheck, "-x", "-P", str(ROOT), *map(str, SCRIPTS)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_nobodys_names_are_inside():
    for path in LAUNCH.iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"gs://|gcr\.io|docker\.pkg|/home/|/Users/", text), path
        for option in ("project", "zone", "cluster", "service-account"):
            assert not re.search(rf"--{option}=[a-z0-9]", text), (path, option)


# -- dry runs --------------------------------------------------------------------------------------

SLICE = ("--name", "my-slice", "--project", "my-project", "--zone", "my-zone")
TRAIN = ("--", "evolving-rl", "train", "--config=configs/x.py", "--workdir=/mnt/my runs/1")
NEW = ("--type", "v5p-64", "--runtime", "v2-alpha-tpuv5")
GKE = ("--name", "run-1", "--image", "my-image", "--dry-run")
DRY = {
    "tpu_up": ("tpu_pod.sh", "up", *SLICE, *NEW, "--spot", "--dry-run", *TRAIN),
    "tpu_up_setup": (
        *("tpu_pod.sh", "up", *SLICE, "--type", "v6e-16", "--runtime", "v2-alpha-tpuv6e"),
        *("--network", "n", "--service-account", "a", "--setup", "sudo mount host:/runs /mnt"),
        *("--python", "python3.12", "--dry-run", *TRAIN),
    ),
    **{
        f"tpu_{step}": ("tpu_pod.sh", step, *SLICE, *NEW, "--dry-run", *TRAIN)
        for step in (
            *("create", "wait", "copy", "install", "run", "follow", "logs", "stop", "status"),
            "delete",
        )
    },
    "gpu_one": ("gpu.sh", "--dry-run", *TRAIN),
    "gpu_two_machines": (
        *("gpu.sh", "--machines", "2", "--machine", "1", "--processes", "2"),
        *("--coordinator", "host:1234", "--dry-run", *TRAIN),
    ),
    "slurm": ("slurm.sbatch", *TRAIN[1:]),
    "jobset": (
        *("gke.sh", "jobset", *GKE, "--accelerator", "tpu-v5p-slice", "--topology", "2x2x4"),
        *("--hosts", "4", "--claim", "my-claim", *TRAIN),
    ),
    "xpk": (
        *("gke.sh", "xpk", *GKE, "--cluster", "my-cluster", "--project", "my-project"),
        *("--zone", "my-zone", "--tpu-type", "v5litepod-16", "--slices", "2", *TRAIN),
    ),
}


@pytest.mark.parametrize("name", DRY)
def test_dry_runs_print_the_stored_commands(name, tmp_path):
    script, *arguments = DRY[name]
    stand_in(tmp_path / "nvidia-smi", "seq 0 7")
    variables = {"TMPDIR": "/tmp"}
    if script == "slurm.sbatch":
        variables |= {"DRY_RUN": 1, "SLURM_JOB_ID": 7, "SLURM_SUBMIT_DIR": ROOT}
    done = call(LAUNCH / script, *arguments, path=tmp_path, **variables)
    assert done.returncode == 0, done.stderr
    text = done.stdout.replace(str(LAUNCH), "LAUNCH")
    stored = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        stored.write_text(text, encoding="utf-8")
    assert text == stored.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tpu_pod.sh",), "STEP must be one of up create"),
        (("tpu_pod.sh", "fly"), "got 'fly'"),
        (("tpu_pod.sh", "wait"), r"--name \(or \$TPU_NAME\) must be given, got nothing"),
        (("tpu_pod.sh", "create", *SLICE, "--dry-run"), r"--type \(or \$TPU_TYPE\) must be given"),
        (("tpu_pod.sh", "run", *SLICE, *NEW, "--dry-run"), "a command must be given after --"),
        (("tpu_pod.sh", "run", "--nmae", "x"), "unknown option '--nmae'"),
        (("tpu_pod.sh", "create", *SLICE, "--type", "v3-8", "--runtime", "r"), "v4, .* got 'v3'"),
        (("tpu_pod.sh", "run", *SLICE, "--type", "v3-8", "--dry-run", *TRAIN), "v4, .* got 'v3'"),
        (("gpu.sh", "--processes", "x", *TRAIN), "must be numbers, got 'x'"),
        (
            ("gpu.sh", "--machines", "2", *TRAIN),
            r"--coordinator \(or \$COORDINATOR\) must be given",
        ),
        (("gpu.sh", "--machines", "2", "--machine", "2", *TRAIN), "must be in 0 .. machines - 1"),
        (("gke.sh", "jobset", *GKE, *TRAIN), "--accelerator .* must be given"),
        (("gke.sh", "swarm"), "must be jobset or xpk, got 'swarm'"),
        (("slurm.sbatch", "a"), "must be started by sbatch"),
        (("worker.sh", "--chip", "v9", "true"), "--chip must be v4, v5e, v5p, v6e, gpu or none"),
        (("worker.sh",), "COMMAND must be given"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    script, *rest = arguments
    done = call(LAUNCH / script, *rest)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert re.search(message, line), line


@pytest.mark.parametrize("script", ["tpu_pod.sh", "gpu.sh", "gke.sh"])
def test_help_describes_every_option(script):
    done = call(LAUNCH / script, "--help")
    assert done.returncode == 0
    text = (LAUNCH / script).read_text(encoding="utf-8")
    for option in re.findall(r"^    (--[a-z-]+)\)", text, re.MULTILINE):
        assert option in done.stdout, option


def test_processes_of_a_machine_share_its_gpus(tmp_path):
    stand_in(tmp_path / "nvidia-smi", "seq 0 7")
    done = call(LAUNCH / "gpu.sh", "--processes", 4, "--dry-run", *TRAIN, path=tmp_path)
    shares = re.findall(r"CUDA_VISIBLE_DEVICES=(\S+)", done.stdout.replace("\\", ""))
    assert shares == ["0,1", "2,3", "4,5", "6,7"]
    done = call(LAUNCH / "gpu.sh", "--processes", 3, "--dry-run", *TRAIN, path=tmp_path)
    assert done.returncode == 2 and "must divide the number of GPUs (8), got 3" in done.stderr


def test_the_jobset_is_yaml_without_holes():
    text = (GOLDEN / "jobset.txt").read_text(encoding="utf-8")
    assert "${" not in text
    assert '"--workdir=/mnt/my runs/1"]' in text and "completions: 4" in text


# -- the worker ------------------------------------------------------------------------------------


def counting(tmp_path, codes):
    """A program that ends with these codes, one a start, and shows its flags."""
    path = tmp_path / "program.sh"
    path.write_text(
        f"echo start >> {tmp_path}/starts\n"
        f"echo flags $LIBTPU_INIT_ARGS $XLA_FLAGS\n"
        f"set -- {' '.join(map(str, codes))}\n"
        f"shift $(($(wc -l < {tmp_path}/starts) - 1))\nexit $1\n"
    )
    return ("bash", path)


@pytest.mark.parametrize(
    ("codes", "expected", "starts"),
    [
        ([75, 134, 0], 0, 3),
        ([1, 0], 1, 1),
        ([2], 2, 1),
        ([75, 75, 75, 75], 75, 3),  # --restarts 2
        ([137, 0], 137, 1),
    ],
)
def test_a_worker_starts_again_on_two_codes_only(tmp_path, codes, expected, starts):
    done = call(
        *(LAUNCH / "worker.sh", "--restarts", 2, "--state", tmp_path),
        *counting(tmp_path, codes),
        RESTART_PAUSE_S=0,
    )
    assert done.returncode == expected
    assert (tmp_path / "starts").read_text().count("start") == starts
    assert (tmp_path / "run.exit").read_text() == f"{expected}\n"


def test_a_worker_sets_the_flags_of_its_chip_and_keeps_the_users(tmp_path):
    command = counting(tmp_path, [0, 0])
    done = call(LAUNCH / "worker.sh", "--chip", "v5p", *command, LIBTPU_INIT_ARGS="--mine=1")
    assert "--xla_tpu_overlap_compute_collective_tc=true" in done.stdout
    assert done.stdout.strip().endswith("--mine=1")
    done = call(LAUNCH / "worker.sh", "--chip", "gpu", *command)
    assert "latency_hiding" in done.stdout and "tpu" not in done.stdout


def test_a_worker_passes_a_signal_on_and_waits(tmp_path):
    command = ["bash", LAUNCH / "worker.sh", sys.executable, "-c", SAVING, tmp_path]
    worker = subprocess.Popen(list(map(str, command)))
    end = time.monotonic() + 30
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=30) == 75
    assert (tmp_path / "saved").exists()


# -- on stand-ins ----------------------------------------------------------------------------------


@pytest.fixture
def gcloud(tmp_path):
    """Folder of the stand-in; its calls are in calls.jsonl."""
    from conftest import free_port

    here = tmp_path / "cloud"
    here.mkdir()
    (here / "gcloud.py").write_text(GCLOUD.format(here=str(here), port=free_port()))
    stand_in(here / "bin" / "gcloud", f'exec {sys.executable} {here}/gcloud.py "$@"')
    return here


def calls(here):
    return [json.loads(line) for line in (here / "calls.jsonl").read_text().splitlines()]


def up(gcloud, program, *arguments, options=()):
    link = f"mkdir -p .venv/bin && ln -sf {sys.executable} .venv/bin/python"
    script = gcloud / "program.py"
    script.write_text(program)
    return call(
        *(LAUNCH / "tpu_pod.sh", "up", *SLICE, *NEW, "--install", link, "--restarts", 2, *options),
        *("--", sys.executable, script, *arguments),
        path=gcloud / "bin",
        TMPDIR=gcloud,
        POLL_S=0,
        RESTART_PAUSE_S=0,
        JAX_PLATFORMS="cpu",
        PYTHONPATH=".",
    )


def test_a_pod_from_nothing_to_the_end_of_a_run(gcloud, tmp_path):
    done = up(gcloud, MEETING.format(after=""), tmp_path / "first")
    assert done.returncode == 0, done.stderr
    assert "met [0, 1] of 2" in done.stdout
    verbs = [next(w for w in c[3:] if not w.startswith("-")) for c in calls(gcloud)]
    assert verbs == ["describe", "create", "describe", "scp", *["ssh"] * 4]
    for i in range(2):  # the code is there, and nothing that is no code
        names = {p.name for p in (gcloud / f"worker{i}" / "evolving-rl").iterdir()}
        assert {"evolving_rl_jax", "launch", "setup.py"} <= names and ".git" not in names
        assert (gcloud / f"worker{i}" / "evolving-rl" / "run.exit").read_text() == "0\n"


def test_a_setup_that_fails_starts_nothing(gcloud, tmp_path):
    """A run would write its checkpoints to a disk that nobody mounted."""
    done = up(gcloud, MEETING.format(after=""), tmp_path / "first", options=("--setup", "exit 32"))
    assert done.returncode == 32 and not (tmp_path / "first").exists()
    assert not any("nohup" in word for call in calls(gcloud) for word in call)


def test_a_run_that_is_stopped_is_not_started_again(gcloud, tmp_path):
    with futures.ThreadPoolExecutor(1) as pool:
        followed = pool.submit(up, gcloud, SAVING, tmp_path)
        end = time.monotonic() + 60
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < end and not followed.done()
            time.sleep(0.05)
        done = call(LAUNCH / "tpu_pod.sh", "stop", *SLICE, path=gcloud / "bin")
        assert done.returncode == 0, done.stderr
        followed = followed.result()
    assert followed.returncode == 130 and "starting again" not in followed.stderr
    assert (tmp_path / "saved").exists()


def test_a_preempted_pod_is_made_again_and_the_run_goes_on(gcloud, tmp_path):
    gone = f"pathlib.Path({str(gcloud / 'state')!r}).write_text('SUSPENDED'); os._exit(1)"
    done = up(gcloud, MEETING.format(after=gone), tmp_path / "first")
    assert done.returncode == 0, done.stderr
    assert "starting again (1 of 2)" in done.stderr
    verbs = [next(w for w in c[3:] if not w.startswith("-")) for c in calls(gcloud)]
    assert verbs.count("create") == 2 and verbs.count("delete") == 1
    assert (tmp_path / "first").read_text() == "saved"


@pytest.mark.parametrize(
    ("drop", "copies", "message"),
    [
        (("before", "tail -n"), 1, "following again"),
        (("before", "ln -sf"), 2, "exit code 255, starting again (1 of 2)"),
        (("after", "nohup"), 2, "exit code 255, starting again (1 of 2)"),
    ],
)
def test_a_broken_connection_ends_nothing(gcloud, tmp_path, drop, copies, message):
    (gcloud / "drop.json").write_text(json.dumps(drop))
    done = up(gcloud, MEETING.format(after=""), tmp_path / "first")
    assert done.returncode == 0, done.stderr
    assert message in done.stderr and "met [0, 1] of 2" in done.stdout
    assert not (gcloud / "drop.json").exists()
    words = [word for call in calls(gcloud) for word in call]
    assert words.count("create") == 1 and words.count("scp") == copies


def test_a_run_that_ends_with_255_is_not_a_broken_connection(gcloud, tmp_path):
    assert up(gcloud, "raise SystemExit(255)", tmp_path / "first").returncode == 1


def test_a_failing_run_is_not_repeated(gcloud, tmp_path):
    done = up(gcloud, "raise SystemExit(3)", tmp_path / "first")
    assert done.returncode == 3
    assert sum("create" in c for c in calls(gcloud)) == 1


def free_slurm_job():
    """A job number whose port is free: JAX takes 61440 + number modulo 4096."""
    for job in range(os.getpid() % 4000, 4096):
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", 61440 + job))
                return job
            except OSError:
                continue
    raise AssertionError("no free port")


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (75, True), (1, False)])
def test_a_slurm_job(tmp_path, code, requeued):
    stand_in(tmp_path / "bin" / "srun", SRUN.format(here=tmp_path))
    stand_in(tmp_path / "bin" / "scontrol", f'echo "scontrol $*" >> {tmp_path}/calls')
    program = tmp_path / "program.py"
    program.write_text(MEETING.format(after=f"sys.exit({code})") if not code else f"exit({code})")
    job = free_slurm_job()
    done = call(
        *(LAUNCH / "slurm.sbatch", sys.executable, program, tmp_path / "first"),
        path=tmp_path / "bin",
        SLURM_JOB_ID=job,
        SLURM_SUBMIT_DIR=ROOT,
        JAX_PLATFORMS="cpu",
        PYTHONPATH=ROOT,
        RESTARTS=0,
        CHIP="none",
    )
    assert done.returncode == code, done.stderr
    assert ("met [0, 1] of 2" in done.stdout) == (code == 0)
    lines = (tmp_path / "calls").read_text().splitlines()
    assert lines[0].startswith("srun --ntasks-per-node=1 --kill-on-bad-exit=0 --export=ALL bash")
    assert lines[1:] == ([f"scontrol requeue {job}"] if requeued else [])


def test_two_processes_on_one_machine(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(MEETING.format(after=""))
    from conftest import free_port

    done = call(
        *(LAUNCH / "gpu.sh", "--processes", 2, "--coordinator", f"127.0.0.1:{free_port()}"),
        *("--", sys.executable, program, tmp_path / "first"),
        JAX_PLATFORMS="cpu",
        PYTHONPATH=ROOT,
        XLA_FLAGS="",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("met [0, 1] of 2") == 2
