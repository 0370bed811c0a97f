"""Two processes of two devices against one of four: the same batches, losses, episodes and policy.

All on loopback with virtual CPU devices.  Whole runs are slow; the update alone is not.
"""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, free_port

from evolving_rl_jax.record.metrics import read_metrics
from evolving_rl_jax.run.preemption import EXIT_AGAIN

# -- one update ------------------------------------------------------------------------------------

UPDATE = """
import json, os
from evolving_rl_jax.run import hosts as distributed
import jax, numpy as np

address = distributed.find(os.environ)
with distributed.joined(address, start_timeout_s=60, heartbeat_timeout_s=10) as hosts:
    from doubles import make_task
    from evolving_rl_jax import models, parallel
    from evolving_rl_jax.config import default_config
    from evolving_rl_jax.rollout.batch import BatchShape, make_batch, split_experience
    from evolving_rl_jax.rollout.evolve import Candidate, Experience, Source, add_sources
    from evolving_rl_jax.train import global_batch as gb
    from evolving_rl_jax.update import optimizer, state, step
    from evolving_rl_jax.types import Episode, Sample

    config = default_config()
    config.rollout.update(num_sources=4, num_retrieved=2, num_skills=2, max_length=16)
    config.rollout.update(num_source_episodes=2, train_sources=True)
    config.train.update(row_length=16, micro_batch_rows=8, minibatches=2, num_iterations=5)
    config.optimizer.learning_rate = 1e-2
    cfg = models.ModelConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2,
        num_kv_heads=2, head_dim=8,
    )

    def sample(rng):
        n = rng.integers(3, 12)
        mask = (np.arange(n) > 1).astype(np.float32)
        return Sample(
            tokens=rng.integers(0, 32, n).astype(np.int32), loss_mask=mask,
            logprobs=-3.4 * mask, sampling_logprobs=-3.4 * mask,
        )

    def source(g):
        rng = np.random.default_rng(g)
        task = make_task(f"t{g}")
        play = lambda: Episode(task, [], bool(rng.integers(2)), "ok", [sample(rng)], reward=0.0)
        made = [Candidate(f"{g} {n}", sample(rng), None, "", n != g % 3) for n in range(2)]
        episodes = {(k, n, 0): play() for k in range(2) for n in range(2) if made[n].valid}
        for e in episodes.values():
            e.reward = float(e.won)
        attempts = [play(), play()]
        for e in attempts:
            e.reward = float(e.won)
        return Source(task, attempts[0], made, [task] * 2, episodes, attempts)

    def experience(numbers):
        sources = [source(g) for g in numbers]
        wins, mask = np.zeros((2, len(numbers), 2, 2, 1), np.float32)
        valid = np.array([[c.valid for c in s.candidates] for s in sources], np.float32)
        for i, s in enumerate(sources):
            for key, e in s.episodes.items():
                wins[i][key], mask[i][key] = e.reward, 1
        found = Experience(sources, wins, mask, valid)
        add_sources(found, 2, None)
        return found

    mesh = parallel.make_mesh(2, 2, 1)
    chosen = optimizer.make_optimizer(config, 10)
    update = step.make_train_step(config, cfg, chosen, mesh)
    now = state.init_state(cfg, chosen, mesh, jax.random.key(0))
    shape = gb.host_shape(BatchShape.from_config(config), hosts)
    numbers = gb.source_numbers(4, 2, hosts)
    mine, metrics = experience(numbers), []
    for share in split_experience(mine, 2):
        batch = gb.global_batch(make_batch(share, shape), shape, hosts, mesh)
        now, m = update(now, batch)
        metrics.append({k: float(v) for k, v in jax.device_get(m).items()})
    whole = gb.whole_experience(mine, numbers, hosts, whole_sources=1)
    records = [
        (s.task.id, [c.raw for c in s.candidates], len(s.episodes), s.episode.won,
         [int(c.sample.loss_mask.sum()) for c in s.candidates], [e.won for e in s.attempts])
        for s in whole.sources
    ]
    assert len(whole.sources[0].candidates[0].sample.tokens) > 0
    mine = {"rollout/episodes": 3, "rollout/cache_used": 0.5, "env/respawns": 2, "time/x": 1}
    mine["rollout/overlapped_seconds"] = 5.0
    whole_run = mine | {"rollout/episodes": 3 * hosts.count, "env/respawns": 2 * hosts.count}
    assert gb.whole_counts(dict(mine), hosts) == whole_run
    if hosts.first:
        arrays = whole.wins, whole.skill_valid, whole.source_wins, whole.source_mask
        print(json.dumps([metrics, records, *(x.tolist() for x in arrays)]))
"""


def launch(arguments, count, *, code=None, compiled=None):
    """``count`` processes with 4 devices together."""
    port, processes = free_port(), []
    for i in range(count):
        variables = os.environ | {
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // count}",
        }
        if code and not arguments:  # less time to compile
            variables["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
        if count > 1:
            variables |= {
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(i),
            }
        if compiled:
            variables |= {
                "JAX_ENABLE_COMPILATION_CACHE": "true",
                "JAX_COMPILATION_CACHE_DIR": str(compiled),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            }
        command = ["-c", code] if code else ["-m", "evolving_rl_jax"]
        processes.append(
            subprocess.Popen(
                [sys.executable, *command, *map(str, arguments)],
                env=variables,
                cwd=ROOT,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    return processes


def finish(processes, timeout=600):
    return [(p.communicate(timeout=timeout), p.returncode) for p in processes]


def printed(code, count):
    results = finish(launch([], count, code=code), 200)
    for (_, err), returncode in results:
        assert returncode == 0, err[-3000:]
    return json.loads(results[0][0][0].splitlines()[-1])


def test_an_update_is_the_same_on_one_process_and_on_two():
    one, two = printed(UPDATE, 1), printed(UPDATE, 2)
    assert one[1:] == two[1:]
    assert len(one[0]) == 2
    for a, b in zip(one[0], two[0], strict=True):
        assert a["update_norm"] > 0 and a["sequences_solver"] > 0
        for name in a:
            assert b[name] == pytest.approx(a[name], rel=2e-4, abs=2e-6), name


# -- whole runs ------------------------------------------------------------------------------------

CONFIG = """
import importlib.util


def get_config():
    spec = importlib.util.spec_from_file_location("tiny", {tiny!r})
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    config = tiny.get_config()
    config.rollout.num_sources = 4
    config.train.num_iterations = 3
    config.checkpoint.every = 1
    # Not one that depends on the number of iterations, which one of the restarts changes.
    config.optimizer.update(schedule="constant", warmup_steps=0)
    config.hosts.heartbeat_timeout_s = 10.0
    config.eval.update(num_games=2, conditions=("none", "own"))
    return config
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_config):
    path = tmp_path_factory.mktemp("configs") / "hosts.py"
    path.write_text(CONFIG.format(tiny=tiny_config), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def single(config, compiled, tmp_path_factory):
    """The run folder of one process with four devices."""
    pytest.importorskip("alfworld")
    workdir = tmp_path_factory.mktemp("runs") / "single"
    ((_, err), code) = finish(launch(command(config, workdir), 1, compiled=compiled))[0]
    assert code == 0, err[-3000:]
    return workdir


def command(config, workdir, *more):
    return ["train", f"--config={config}", f"--workdir={workdir}", *more]


def assert_same_run(one, other):
    # Sums of floating-point numbers differ in their order, so losses agree to rounding only.
    for a, b in zip(read_metrics(one), read_metrics(other), strict=True):
        for name in a:
            if name.split("/")[0] in ("time", "rate") or "reused" in name or "logprob_" in name:
                continue
            if name in ("rollout/cache_used", "rollout/prefilled_tokens", "rollout/evictions"):
                continue  # each host has slots of its own
            assert b[name] == pytest.approx(a[name], rel=1e-3, abs=1e-5), name
    bank = "skills/bank.jsonl"
    assert (one / bank).read_bytes() == (other / bank).read_bytes()
    for path in sorted((one / "episodes").iterdir()):
        texts = [
            [
                [turn["output"] for turn in json.loads(line)["source"]["turns"]]
                for line in gzip.open(folder / "episodes" / path.name, "rt", encoding="utf-8")
            ]
            for folder in (one, other)
        ]
        assert texts[0] == texts[1]
    for path in sorted((one / "eval").glob("*.jsonl")):  # the skills of a panel
        assert path.read_bytes() == (other / "eval" / path.name).read_bytes()
    for path in sorted((one / "eval").glob("*.json")):
        results = [json.loads((f / "eval" / path.name).read_text()) for f in (one, other)]
        assert results[0]["games"] == results[1]["games"]


# Runs the command and writes down how many iterations were logged before each compilation, and what
# this process opened to write, made or moved in the run folder.
WATCHED = """
import json, os, pathlib, sys, traceback
import jax.monitoring
from evolving_rl_jax.cli.main import main

workdir, *arguments = sys.argv[1:]
compiled, touched = [], set()
metrics = pathlib.Path(workdir) / "metrics.jsonl"


def on_event(name, *_, **__):
    if name == "/jax/core/compile/backend_compile_duration":
        done = metrics.read_bytes().count(b"\\n") if metrics.exists() else 0
        stack = [f"{f.filename}:{f.lineno}" for f in traceback.extract_stack()]
        compiled.append([done, [s for s in stack if "evolving_rl_jax/" in s or "orbax" in s][-3:]])


def on_call(event, args):
    writes = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"):
        if isinstance(args[0], (str, os.PathLike)):
            touched.add(os.path.relpath(os.fspath(args[0]), workdir))


jax.monitoring.register_event_duration_secs_listener(on_event)
sys.addaudithook(on_call)
code = main([*arguments, f"--workdir={workdir}"])
print(json.dumps([compiled, sorted(p for p in touched if not p.startswith(".."))]))
sys.exit(code)
"""


@pytest.mark.slow
def test_a_run_of_two_processes_is_the_run_of_one(config, compiled, single, tmp_path):
    workdir = tmp_path / "double"
    for name in ("games", "tokenizer", "warmstart"):  # the same policy to start from
        shutil.copytree(single / name, workdir / name)
    shutil.copy(single / "config.json", workdir)
    arguments = [workdir, "train", f"--config={config}"]
    results = finish(launch(arguments, 2, code=WATCHED, compiled=compiled))
    for (_, err), code in results:
        assert code == 0, err[-3000:]
    (first, wrote), (second, also_wrote) = (
        json.loads(out.splitlines()[-1]) for (out, _), _ in results
    )
    assert len(first) > 5 and len(second) > 5  # the listeners heard something
    # Nothing compiles after the first iteration but what Orbax cuts replicated arrays with at the first
    # save, so that the hosts share the writing.
    late = [c for c in first + second if c[0] > 1 or (c[0] and "replica_slices" not in str(c))]
    assert late == []
    for name in ("config.json", "metrics.jsonl", "skills", "eval", "episodes", "report.html"):
        assert any(path.startswith(name) for path in wrote), name
    # One process writes; the others their shards and, while a panel lasts, a journal of their own.
    shared = [p for p in also_wrote if not (p.startswith("checkpoints") or p.endswith("-1.jsonl"))]
    assert set(shared) <= {"eval"}, shared
    assert "iteration 3/3" in results[0][0][0] and "iteration" not in results[1][0][0]
    assert_same_run(single, workdir)


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_another_number_goes_on(
    config, compiled, single, tmp_path
):
    workdir = tmp_path / "killed"
    for name in ("games", "tokenizer", "warmstart"):
        shutil.copytree(single / name, workdir / name)
    shutil.copy(single / "config.json", workdir)
    processes = launch(command(config, workdir), 2, compiled=compiled)
    end = time.monotonic() + 300
    while not (workdir / "checkpoints" / "1").is_dir():  # it gets that name when it is complete
        assert time.monotonic() < end and processes[0].poll() is None
        time.sleep(0.01)
    processes[1].kill()
    killed = time.monotonic()
    (out, err), code = finish(processes)[0]
    assert code in (EXIT_AGAIN, -signal.SIGABRT)
    assert "another process of this run has ended" in err or "another task died" in err
    assert time.monotonic() - killed < 60  # a heartbeat of 10 s, on a busy machine
    # One process takes over what two began; two finish it.
    more = ["--config.train.num_iterations=2"]
    ((out, err), code) = finish(launch(command(config, workdir, *more), 1, compiled=compiled))[0]
    assert code == 0, err[-3000:]
    assert "going on from the checkpoint" in err
    for (_, err), code in finish(launch(command(config, workdir), 2, compiled=compiled)):
        assert code == 0, err[-3000:]
    assert np.array_equal([r["iteration"] for r in read_metrics(workdir)], [0, 1, 2])
    bank = "skills/bank.jsonl"
    assert (single / bank).read_bytes() == (workdir / bank).read_bytes()
