"""``evolving-rl doctor``: is this machine, or are all hosts of a run, ready to train?

Every check gives a line; one that fails says what was found and does not stop the others.  On several
hosts each makes all checks, and a line is fine when it is fine everywhere.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import pathlib
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from evolving_rl_jax.envs.base import EngineMismatch, EnvError
from evolving_rl_jax.run.hosts import Hosts, has_tpu

PACKAGES = (
    *("jax", "jaxlib", "libtpu", "numpy", "flax", "optax", "orbax-checkpoint", "tokenizers"),
    *("alfworld", "textworld", "scikit-learn", "ml-collections"),
)
OPTIONAL = ("libtpu",)
_ALL_REDUCE_S = 2.0
_ALL_REDUCE_BYTES = 1 << 24  # a device
_LEAST_FREE_GB = 5.0
_TEXT = "You are in the middle of a room. go to cabinet 3 | take mug 1 from shelf 2 – {é: [1, 2]}\n"


class Problem(Exception):
    """A check that failed; the message says what was found and what is needed."""


@dataclasses.dataclass(frozen=True)
class Line:
    """The outcome of a check on one host.  ``ok`` None: it does not apply here."""

    name: str
    ok: bool | None
    text: str


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is looked at: the processes, and a configuration and run folder if they were given."""

    hosts: Hosts
    config: Any = None
    workdir: pathlib.Path | None = None


def check_all(subject: Subject) -> bool:
    """Makes all checks, prints the table (on the first host), and returns whether all is well."""
    hosts, well = subject.hosts, True
    for name, check in CHECKS.items():
        everyone = hosts.gather(_outcome(name, check, subject))
        failed = [(i, line) for i, line in enumerate(everyone) if line.ok is False]
        well = well and not failed
        if hosts.first:
            for text in _shown(everyone, failed, hosts.count):
                print(text, flush=True)
    if hosts.first:
        print("all is well" if well else "something is wrong, see the lines with FAIL", flush=True)
    return well


def _outcome(name: str, check: Callable[[Subject], str], subject: Subject) -> Line:
    try:
        return Line(name, True, check(subject))
    except _NotHere as e:
        return Line(name, None, str(e))
    except Exception as e:  # whatever is broken here is what the table is for
        kind = "" if isinstance(e, Problem | EngineMismatch | EnvError) else f"{type(e).__name__}: "
        return Line(name, False, f"{kind}{' '.join(str(e).split())}"[:400])


def _shown(everyone: list[Line], failed: list[tuple[int, Line]], count: int) -> Iterator[str]:
    first = everyone[0]
    if failed:
        for index, line in failed:
            where = f" (process {index})" if count > 1 else ""
            yield f"FAIL  {line.name:<18} {line.text}{where}"
    else:
        where = f" (process 0 of {count})" if len({line.text for line in everyone}) > 1 else ""
        yield f"{'--' if first.ok is None else 'ok':<5} {first.name:<18} {first.text}{where}"


class _NotHere(Exception):
    """A check that does not apply."""


# -- software and devices --------------------------------------------------------------------------


def versions(_subject: Subject) -> str:
    """Installed versions; packages of the extra ``train`` must be there."""
    found, missing = [f"python {sys.version.split()[0]}"], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    missing = [name for name in missing if name not in OPTIONAL]
    if missing:
        raise Problem(f"must be installed (pip install -e '.[train]'): {', '.join(missing)}")
    return ", ".join(found)


def devices(subject: Subject) -> str:
    """The devices, and that an accelerator of this machine is used."""
    import jax

    local = jax.local_devices()
    platform = local[0].platform
    wanted = "tpu" if has_tpu() else "gpu" if shutil.which("nvidia-smi") else platform
    if platform != wanted and "JAX_PLATFORMS" not in os.environ:
        extra = {"tpu": "tpu", "gpu": "cuda"}[wanted]
        raise Problem(
            f"jax must use the {wanted} of this machine, got {platform} "
            f"(pip install -e '.[train,{extra}]')"
        )
    memory = (local[0].memory_stats() or {}).get("bytes_limit")
    size = f", {memory / 2**30:.0f} GiB each" if memory else ""
    return (
        f"{subject.hosts.count} processes x {len(local)} {platform} ({local[0].device_kind}{size})"
    )


def arithmetic(_subject: Subject) -> str:
    """A matrix product on every local device against numpy."""
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 256, 256)).astype(np.float32)
    for device in jax.local_devices():
        x, y = jax.device_put((a, b), device)
        worst = float(jnp.abs(jnp.matmul(x, y, precision="highest") - a @ b).max())
        if not worst < 1e-3:
            raise Problem(f"a matrix product on {device} must equal numpy's, got {worst:g} off")
    return f"matrix products on {len(jax.local_devices())} devices equal numpy's"


def mesh(subject: Subject) -> str:
    """The mesh of the configuration over all devices."""
    from evolving_rl_jax.parallel import make_mesh
    from evolving_rl_jax.run.parts import training_mesh

    if subject.config:
        made = training_mesh(subject.config, subject.hosts)
    else:
        made = make_mesh(data=-1, fsdp=1, tensor=1)
    return " x ".join(f"{name} {size}" for name, size in made.shape.items())


def all_reduce(subject: Subject) -> str:
    """Sums over all devices for two seconds, every result checked."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from evolving_rl_jax.parallel import AXES, make_mesh

    grid = make_mesh(-1, 1, 1)
    rows = NamedSharding(grid, PartitionSpec(AXES))
    whole = NamedSharding(grid, PartitionSpec())
    shape = (grid.size, _ALL_REDUCE_BYTES // 4)
    values = jax.make_array_from_callback(
        shape, rows, lambda i: np.full((1, shape[1]), i[0].start or 0, np.float32)
    )
    total = jax.jit(lambda x: x.sum(0), out_shardings=whole)
    expected = sum(range(grid.size))
    jax.block_until_ready(total(values))
    began = time.perf_counter()
    jax.block_until_ready(total(values))
    # The same number of rounds everywhere, or the last one would wait for ever.
    one = max(time.perf_counter() - began, 1e-5)
    rounds = subject.hosts.from_first(max(1, min(5000, int(_ALL_REDUCE_S / one))))
    began, wrong = time.perf_counter(), 0
    for _ in range(rounds):
        result = total(values)
        wrong += int(jnp.any(result != expected).addressable_shards[0].data)
    seconds = (time.perf_counter() - began) / rounds
    if wrong:
        raise Problem(f"the sum over {grid.size} devices must be {expected}, {wrong} were not")
    size = _ALL_REDUCE_BYTES / 2**20
    return f"{rounds} sums of {size:.0f} MiB over {grid.size} devices, {1000 * seconds:.2f} ms each"


# -- folders and data ------------------------------------------------------------------------------


def folders(subject: Subject) -> str:
    """Run folder and caches can be written, and there is space."""
    import jax

    wanted = {"temporary files": pathlib.Path(tempfile.gettempdir())}
    if subject.workdir:
        wanted["--workdir"] = subject.workdir
    if jax.config.jax_enable_compilation_cache and (cache := jax.config.jax_compilation_cache_dir):
        if "://" not in str(cache):  # an object store is jax's own affair
            wanted["the compilation cache (JAX_COMPILATION_CACHE_DIR)"] = pathlib.Path(cache)
    free = []
    for name, path in wanted.items():
        there = next(p for p in (path, *path.absolute().parents) if p.exists())
        try:
            with tempfile.TemporaryFile(dir=there) as file:
                file.write(b"x")
        except OSError as e:
            raise Problem(f"{name} must be writable, got {there} ({e.strerror})") from e
        gigabytes = shutil.disk_usage(there).free / 1e9
        if gigabytes < _LEAST_FREE_GB:
            raise Problem(
                f"{name} must have {_LEAST_FREE_GB:g} GB free, got {gigabytes:.1f} GB in {there}"
            )
        free.append(f"{name} {gigabytes:.0f} GB free")
    return ", ".join(free)


def shared_folder(subject: Subject) -> str:
    """All hosts see the same run folder."""
    hosts, workdir = subject.hosts, subject.workdir
    if hosts.count == 1 or workdir is None:
        raise _NotHere("one process" if hosts.count == 1 else "give --workdir to check it")
    name = hosts.from_first(f"doctor-{uuid.uuid4().hex}")
    path, problem = workdir.parent / name, ""
    if hosts.first:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        except OSError as e:
            problem = f"{path.parent} must be writable ({e.strerror})"
    hosts.meet("doctor wrote a file")
    seen = path.is_file()
    hosts.meet("doctor read a file")
    if hosts.first:
        path.unlink(missing_ok=True)
    if problem or not seen:
        raise Problem(problem or f"{workdir.parent} must be one folder for all hosts, got another")
    return f"{workdir.parent} is the same on {hosts.count} hosts"


def data(subject: Subject) -> str:
    """Games and policy of the configuration are there."""
    if subject.config is None:
        raise _NotHere("give --config to check it")
    from evolving_rl_jax import envs

    config, found = subject.config, []
    if ":" in config.env.name:
        found.append(
            f"{len(envs.benchmark(config.env.name).load(pathlib.Path()))} tasks of its own"
        )
    elif not config.data.games:
        found.append("games are generated at the first start")
    else:
        tasks = envs.benchmark(config.env.name).load(pathlib.Path(config.data.games))
        found.append(f"{len(tasks)} tasks in {config.data.games}")
    if config.model.hf_path:
        from evolving_rl_jax import models

        cfg = models.config_from_hf(config.model.hf_path)
        found.append(f"policy {config.model.hf_path} ({cfg.num_layers} layers)")
    return ", ".join(found)


# -- tokens and engines ----------------------------------------------------------------------------


def tokens(subject: Subject) -> str:
    """Text -> ids -> text gives the same text."""
    from evolving_rl_jax.models.tokenizer import load_tokenizer, train_tokenizer
    from evolving_rl_jax.rollout.prompts import COMPACT_SPECIAL_TOKENS

    path: Any = subject.config.model.hf_path if subject.config else ""
    own = subject.workdir / "tokenizer" if subject.workdir else None
    if not path and own is not None and own.is_dir():
        path = own
    with tempfile.TemporaryDirectory() as scratch:
        what = str(path)
        if not path:
            path, what = scratch, "a tokenizer made for the check"
            train_tokenizer(
                [_TEXT], vocab_size=300, out_dir=scratch, special_tokens=COMPACT_SPECIAL_TOKENS
            )
        tokenizer = load_tokenizer(path)
    ids = tokenizer.encode(_TEXT)
    back = tokenizer.decode(ids)
    if back != _TEXT:
        raise Problem(f"{what} must give back {_TEXT!r}, got {back!r}")
    return f"{len(_TEXT)} characters -> {len(ids)} ids -> the same, {what}"


def game_engines(subject: Subject) -> str:
    """What plays the benchmark: an engine equals its reference, a browser fits its driver."""
    from evolving_rl_jax import envs
    from evolving_rl_jax.config import default_config

    env = (subject.config or default_config()).env
    said = envs.benchmark(env.name).prove(env)
    if not said:
        raise _NotHere(f"the environment is {env.name}")
    return said


def generation(subject: Subject) -> str:
    """Log-probabilities of sampled tokens, by the engine and by a forward pass of the whole."""
    import jax
    import jax.numpy as jnp

    from evolving_rl_jax import models
    from evolving_rl_jax.generate import Engine

    cfg = models.ModelConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2,
        num_kv_heads=2, head_dim=16,
    )  # fmt: skip
    params = models.init(cfg, jax.random.key(0))
    params["embedding"] *= 30  # fresh weights find all tokens equally likely
    params = jax.device_put(params, jax.local_devices()[0])
    engine = Engine(cfg, params, num_slots=2, max_length=32, prefill_chunk=(8,), decode_window=8)
    session = engine.open(0, subject.hosts.index)
    engine.submit(session, np.arange(1, 8), max_new_tokens=16)
    done = []
    while not done:
        done = engine.step()
    ids = np.concatenate([np.arange(1, 8), done[0].tokens])
    hidden, _ = models.apply(params, cfg, jnp.asarray(ids)[None])
    logprobs = jax.nn.log_softmax(models.logits(params, cfg, hidden)[0].astype(jnp.float32))
    whole = np.asarray(logprobs)[np.arange(6, len(ids) - 1), ids[7:]]
    worst = float(np.abs(whole - done[0].logprobs).max())
    limit = 1e-3 if jax.local_devices()[0].platform == "cpu" else 5e-2  # bfloat16 products there
    if not worst < limit:
        raise Problem(f"the engine's log-probabilities must be within {limit:g}, got {worst:g}")
    return f"{len(done[0].tokens)} sampled tokens, log-probabilities within {worst:.0e}"


CHECKS: dict[str, Callable[[Subject], str]] = {
    "versions": versions,
    "devices": devices,
    "arithmetic": arithmetic,
    "mesh": mesh,
    "all-reduce": all_reduce,
    "folders": folders,
    "shared folder": shared_folder,
    "data": data,
    "token round trip": tokens,
    "game engines": game_engines,
    "generation engine": generation,
}
