"""Several hosts: how a process finds the others, and the few things that hosts tell each other.

JAX's own multi-controller runtime does the work.  Every host runs the same program; it plays its
share of the source tasks on its own devices and environments, and the hosts meet only to lay
weights out again, to agree on a batch, and in the train step.

jax is imported where it is needed: finding out that a run has one process costs nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import importlib.util
import itertools
import logging
import os
import pickle
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.run.endings import EXIT_USAGE, ending, lost_peer
from evolving_rl_jax.run.preemption import EXIT_AGAIN, Preempted, Preemption

log = logging.getLogger(__name__)

START_TIMEOUT_S, HEARTBEAT_TIMEOUT_S = 300.0, 100.0
_MEET_TIMEOUT_S = 6 * 3600.0  # a dead host is noticed by its heartbeats, long before
_LEAST_MESSAGE = 1 << 16  # messages are padded to powers of two, so that few programs are compiled
_ON_EVERY_WORKER = "did you start this on every worker?"


@dataclasses.dataclass(frozen=True)
class Address:
    """How to join a run of several processes; None is what JAX finds out by itself.

    Attributes:
      coordinator: ``host:port`` of process 0.
      num_processes: of the whole run.
      process_id: of this process, from 0.
      local_devices: GPUs of this process; None = as JAX decides.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    local_devices: tuple[int, ...] | None = None


def find(
    environ: Mapping[str, str],
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Address | None:
    """How this process joins others, from flags and the environment; None for a run of one process.

    Flags come first, then ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and
    ``JAX_PROCESS_ID``, then a SLURM step of more than one task, then a TPU.

    Raises:
      ConfigError: some of the three are given and others are missing or no numbers.
    """
    given = {
        "coordinator": coordinator or environ.get("JAX_COORDINATOR_ADDRESS"),
        "num-processes": _number(num_processes, environ, "JAX_NUM_PROCESSES"),
        "process-id": _number(process_id, environ, "JAX_PROCESS_ID"),
    }
    missing = [name for name, value in given.items() if value in (None, "")]
    if len(missing) < len(given):
        return _explicit(given, missing)
    tasks = _number(None, environ, "SLURM_STEP_NUM_TASKS") or _number(None, environ, "SLURM_NTASKS")
    if (tasks or 1) > 1:
        if "SLURM_PROCID" in environ and "SLURM_STEP_NODELIST" in environ:
            return Address(local_devices=_slurm_devices(environ))
    platforms = environ.get("JAX_PLATFORMS", "")
    if has_tpu() and (not platforms or "tpu" in platforms):
        return Address()
    return None


def _number(flag: int | None, environ: Mapping[str, str], name: str) -> int | None:
    if flag is not None or not environ.get(name):
        return flag
    try:
        return int(environ[name])
    except ValueError:
        raise ConfigError(f"{name} must be a number, got {environ[name]!r}") from None


def _explicit(given: dict[str, Any], missing: list[str]) -> Address | None:
    if missing:
        raise ConfigError(
            "--coordinator, --num-processes and --process-id (or JAX_COORDINATOR_ADDRESS, "
            "JAX_NUM_PROCESSES and JAX_PROCESS_ID) must be given together, got none for "
            + ", ".join(f"--{name}" for name in missing)
        )
    address, count, index = given.values()
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise ConfigError(f"--coordinator must be HOST:PORT of process 0, got {address!r}")
    if count < 1 or not 0 <= index < count:
        raise ConfigError(
            f"--process-id must be in 0 .. num-processes - 1, got {index} of {count} processes"
        )
    return Address(address, count, index) if count > 1 else None


def _slurm_devices(environ: Mapping[str, str]) -> tuple[int, ...] | None:
    """All GPUs of the node when it has one task: left to itself JAX takes one GPU for a task."""
    tasks = environ.get("SLURM_STEP_NUM_TASKS", environ.get("SLURM_NTASKS"))
    nodes = environ.get("SLURM_STEP_NUM_NODES", environ.get("SLURM_NNODES"))
    gpus = environ.get("SLURM_GPUS_ON_NODE", "")
    if tasks != nodes or not gpus.isdigit():
        return None
    return tuple(range(int(gpus)))


def has_tpu() -> bool:
    """Whether this machine is a TPU host; asks no network and does not open the device."""
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


@dataclasses.dataclass(frozen=True)
class Hosts:
    """This process among those of the run.  The default is a run of one process.

    Every method but `share` must be called by all processes, in the same order.
    """

    index: int = 0
    count: int = 1
    _numbers: Iterator[int] = dataclasses.field(default_factory=itertools.count, compare=False)

    @property
    def first(self) -> bool:
        """Whether this process writes logs, metrics and reports."""
        return self.index == 0

    def share(self, items: Sequence[Any]) -> list[Any]:
        """Every ``count``-th item; together the hosts have each item once."""
        return list(items[self.index :: self.count])

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in their order, on every process.

        Args:
          value: anything that can be pickled; the hosts of a run trust each other.
        """
        if self.count == 1:
            return [value]
        from jax.experimental.multihost_utils import process_allgather

        from evolving_rl_jax.parallel import in_order

        gather = in_order(process_allgather)
        data = np.frombuffer(pickle.dumps(value, pickle.HIGHEST_PROTOCOL), np.uint8)
        sizes = gather(np.array([len(data)], np.int32)).reshape(-1)
        width = max(_LEAST_MESSAGE, 1 << int(sizes.max() - 1).bit_length())
        padded = np.zeros(width, np.uint8)
        padded[: len(data)] = data
        rows = np.asarray(gather(padded)).reshape(self.count, width)
        return [pickle.loads(rows[i, :size].tobytes()) for i, size in enumerate(sizes)]

    def from_first(self, value: Any) -> Any:
        """The value of process 0."""
        return self.gather(value if self.first else None)[0]

    def meet(self, what: str, timeout_s: float = _MEET_TIMEOUT_S) -> None:
        """Returns when all processes are here.

        Raises:
          RuntimeError: some are not within ``timeout_s``; the message of the runtime names them.
        """
        if self.count == 1:
            return
        from orbax.checkpoint import multihost

        key = f"evolving_rl/{what}/{next(self._numbers)}"
        multihost.get_barrier_sync_fn()(key=key, timeout_ms=int(1000 * timeout_s))

    def check_alike(self, facts: Mapping[str, Any]) -> None:
        """Raises ConfigError, on every process, where the processes differ in one of the facts."""
        everyone = self.gather(dict(facts))
        for name, wanted in everyone[0].items():
            for index, found in enumerate(everyone):
                if found[name] != wanted:
                    raise ConfigError(
                        f"every process must have the same {name}, got {wanted!r} in process 0 "
                        f"and {found[name]!r} in process {index}"
                    )


ALONE = Hosts()  # a run of one process

_NOTICE, _NOTICE_POLL_S = "evolving_rl/notice", 1.0


@contextlib.contextmanager
def shared_notices(hosts: Hosts, preemption: Preemption) -> Iterator[None]:
    """A notice to one process is a notice to all within seconds, whatever they are doing.

    The service that the processes joined by keeps it; collectives could tell it only where all meet.
    """
    if hosts.count == 1:
        yield
        return
    over = threading.Event()
    sharing = threading.Thread(
        target=_share_notices, args=(hosts, preemption, over), name="notices", daemon=True
    )
    sharing.start()
    try:
        yield
    finally:
        over.set()
        sharing.join(timeout=10.0)  # before the service may be gone


def _share_notices(hosts: Hosts, preemption: Preemption, over: threading.Event) -> None:
    from jax._src import distributed  # jax has no public name for its key-value store

    store = distributed.global_state.client
    ended = False
    while not ended:
        ended = over.wait(
            _NOTICE_POLL_S
        )  # once more at the end: whoever leaves may leave by a notice
        try:
            if preemption.reason:
                store.key_value_set(f"{_NOTICE}/{hosts.index}", preemption.reason)
                return
            for _, reason in store.key_value_dir_get(_NOTICE):
                preemption.notice(reason)
        except Exception as e:  # a lost peer, which the heartbeats tell of
            log.debug("notices are no longer shared: %s", e)
            return


def check_hosts(config: Any, hosts: Hosts) -> None:
    """Raises ConfigError when sources or rows cannot be shared out evenly over the processes."""
    share = config.rollout.num_sources // config.train.minibatches
    for key, value in (
        ("rollout.num_sources / train.minibatches", share),
        ("train.micro_batch_rows", config.train.micro_batch_rows),
    ):
        if value % hosts.count:
            raise ConfigError(
                f"config.{key} must be a multiple of the number of processes ({hosts.count}), got "
                f"{value}"
            )


def join(
    address: Address,
    *,
    start_timeout_s: float = START_TIMEOUT_S,
    heartbeat_timeout_s: float = HEARTBEAT_TIMEOUT_S,
) -> Hosts:
    """Joins the run; call it before anything else uses jax.

    Args:
      address: from `find`.
      start_timeout_s: until all processes must be there.  Later this process ends with one line
        and exit code 75: the runtime offers no way to go on after a failed start, and the others may
        still be waiting for their machines.
      heartbeat_timeout_s: a process that is silent for so long is dead, and the others end.
    """
    import jax

    if "cpu" in (jax.config.jax_platforms or "").split(","):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # SIGTERM is this program's own to handle: it also ends rollouts, which the runtime cannot.
    jax.config.update("jax_enable_preemption_service", False)
    watch = threading.Timer(start_timeout_s, _give_up, (address, start_timeout_s))
    watch.daemon = True
    watch.start()
    options: dict[str, Any] = {}
    if address.coordinator:
        options["cluster_detection_method"] = "deactivate"
    jax.distributed.initialize(
        address.coordinator,
        address.num_processes,
        address.process_id,
        local_device_ids=address.local_devices,
        initialization_timeout=int(start_timeout_s) + 60,  # the timer above speaks first
        heartbeat_timeout_seconds=max(1, round(heartbeat_timeout_s)),
        shutdown_timeout_seconds=max(1, round(heartbeat_timeout_s)),
        **options,
    )
    hosts = Hosts(jax.process_index(), jax.process_count())
    hosts.meet("start", start_timeout_s)
    watch.cancel()
    expected = address.num_processes
    if expected and hosts.count != expected:
        raise ConfigError(f"--num-processes must be that of the run, got {expected} and "
                          f"{hosts.count} processes: {_ON_EVERY_WORKER}")  # fmt: skip
    devices = [d.process_index for d in jax.devices()]
    hosts.check_alike(
        {
            "version of jax": jax.__version__,
            "kind of device": jax.local_devices()[0].device_kind,
            "number of devices": devices.count(hosts.index),
        }
    )
    return hosts


def _give_up(address: Address, timeout_s: float) -> None:
    where = f" at {address.coordinator}" if address.coordinator else ""
    count = f"all {address.num_processes} processes" if address.num_processes else "all processes"
    print(
        f"evolving-rl: {count} must have started and met{where} within {timeout_s:g} s, some have "
        f"not: {_ON_EVERY_WORKER}",
        file=sys.stderr,
        flush=True,
    )
    os._exit(EXIT_AGAIN)  # the main thread is inside the runtime and cannot be interrupted


@contextlib.contextmanager
def joined(address: Address | None, **timeouts: float) -> Iterator[Hosts]:
    """The hosts of a run, left in order at the end.

    A process that fails leaves at once, because the others are not at the end where the runtime
    would wait for them; they notice and end too.
    """
    if address is None:
        yield Hosts()
        return
    hosts = None
    try:
        hosts = join(address, **timeouts)
        yield hosts
        _shutdown()
    except BaseException as e:
        if isinstance(e, Preempted) and e.agreed:
            _shutdown()
            raise
        code = _report(e, hosts)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _shutdown() -> None:
    import jax

    jax.distributed.shutdown()


def _report(error: BaseException, hosts: Hosts | None) -> int:
    """Prints what happened and returns the exit code."""
    who = f"process {hosts.index} of {hosts.count}" if hosts else "this process"
    if found := ending(error):
        code, text = found
        # A mistake is the same in all processes.
        about = "" if code == EXIT_USAGE else f"{who}: "
        print(f"evolving-rl: {about}{text}", file=sys.stderr)
        return code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if lost_peer(error):
        text = " ".join(str(error).split())
        print(
            f"evolving-rl: {who}: another process of this run has ended or does not answer (look at "
            f"its log); the same command on every worker goes on from the last checkpoint.  The "
            f"runtime says: {text[:600]}",
            file=sys.stderr,
        )
        return EXIT_AGAIN
    traceback.print_exception(error)
    print(f"evolving-rl: {who} failed; the others will end too", file=sys.stderr)
    return 1
