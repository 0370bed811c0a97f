"""Compiles a configuration's programs for a TPU slice or for GPUs, without them: do they fit?

The compilers run on any machine; they are given shapes and shardings only, so neither weights nor a
tokenizer are needed.  What training and generation keep in memory at the same time is added up:
the state, the engine's weights and its cache stay, the temporaries are those of one program at a
time; with ``config.rollout.overlap`` those of the train step and of the largest program of generation.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import pathlib
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp

from evolving_rl_jax import models, parallel
from evolving_rl_jax.aot import chips, estimate, gpus
from evolving_rl_jax.config import ConfigError
from evolving_rl_jax.generate.programs import Programs
from evolving_rl_jax.models import lora as lora_lib
from evolving_rl_jax.rollout.batch import BatchShape
from evolving_rl_jax.rollout.evolve import StepScoring
from evolving_rl_jax.run.hosts import Hosts, check_hosts
from evolving_rl_jax.types import TokenBatch
from evolving_rl_jax.update import state as state_lib
from evolving_rl_jax.update import step as step_lib
from evolving_rl_jax.update.agreement import scores_first
from evolving_rl_jax.update.loss import uses_reference
from evolving_rl_jax.update.optimizer import make_optimizer

_GIB = 2**30


@dataclasses.dataclass
class Program:
    """One compiled program; every figure is of one device.

    Attributes:
      name: for people.
      temporary: bytes of activations, gradients and other intermediate results.
      other: bytes of inputs that do not stay, code, and the padding of what does.
      flops: counted from formulas.
      error: what the compiler said instead, when it ran out of memory; ``temporary`` is then what
        it says that it needs beyond what stays.
    """

    name: str
    temporary: float
    other: float
    flops: float
    error: str = ""


@dataclasses.dataclass
class Report:
    """What `check` found.  ``resident`` is {part: bytes of a device} of what always stays."""

    title: str
    notes: list[str]
    chip: chips.Chip
    resident: dict[str, float]
    programs: list[Program]
    config: Any
    shards: int  # data x fsdp
    micro_tokens: int  # of a micro-batch, all devices
    num_micro: int  # micro-batches of the largest step
    overlap: bool = False  # config.rollout.overlap

    def beside(self, program: Program) -> float:
        """Bytes of what runs at the same time: with overlap a rollout beside the train step."""
        if not self.overlap:
            return 0
        step, *generation = self.programs
        others = generation if program is step else [step]
        return max(other.temporary + other.other for other in others)

    def total(self, program: Program) -> float:
        """Bytes that a device needs while ``program`` runs."""
        own = program.temporary + program.other
        return sum(self.resident.values()) + own + self.beside(program)

    def seconds(self, program: Program) -> float:
        """What ``program`` takes at the chip's peak rate, a lower bound; no measurement."""
        return program.flops / self.chip.flops

    @property
    def fits(self) -> bool:
        """Whether every program compiled and fits together with what stays."""
        return all(not p.error and self.total(p) <= self.chip.memory for p in self.programs)


def topology_devices(name: str) -> tuple[chips.Chip, list[Any]]:
    """The chip and the compile-only devices of a slice, or of a GPU.

    Raises:
      ConfigError: not a slice that the TPU compiler knows nor a GPU, or no such compiler is here.
    """
    if found := gpus.parse_topology(name):
        card, kind, count = found
        if count > 1:
            raise ConfigError(
                f"--topology must be one GPU, got {name!r}: without its devices XLA's compiler for GPUs "
                f"ends with a segmentation fault where there are several; ask for {kind}:1"
            )
        if importlib.util.find_spec(gpus.PLUGIN) is None:
            raise ConfigError('compile needs jax\'s CUDA plugin: pip install ".[cuda]"')
        return card.chip(kind), gpus.devices(card)
    try:
        chip, sides = chips.parse_topology(name)
    except ValueError as e:
        cards = ", ".join(gpus.CARDS)
        raise ConfigError(f"--topology {e}; or GPU:NUMBER (h100:1) with a GPU of {cards}") from None
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError('compile needs the TPU compiler (libtpu): pip install ".[tpu]"')
    from jax.experimental import topologies

    bounds = chips.host_bounds(sides)
    options = {"chips_per_host_bounds": bounds} if bounds else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except jax.errors.JaxRuntimeError as e:
        reason = str(e).splitlines()[0]
        raise ConfigError(f"--topology must be a slice that exists, got {name!r}: {reason}") from e
    return chip, list(found.devices)


def host_devices(chip: chips.Chip, devices: list[Any]) -> list[Any]:
    """The devices of one host, for programs that run on those alone.

    The compiler numbers the devices of a program from 0, which those of a host in the middle of a
    larger slice are not: a host with the usual four chips is taken as a slice of its own.
    """
    local = [d for d in devices if d.process_index == devices[0].process_index]
    if len(local) == len(devices):
        return local
    alone = topology_devices(f"{chip.name}:{chips.usual_host(chip)}")[1]
    return alone if len(alone) == len(local) else local


def load_architecture(config, config_file: str) -> models.ModelConfig:
    """The model of a configuration without its weights.

    A hub id is looked up as ``models/NAME.json`` next to the configuration file, NAME being what
    follows the slash; such a file is the model's ``config.json``.

    Raises:
      ConfigError: neither a model that is here nor such a file.
    """
    m = config.model
    if not m.hf_path:
        from evolving_rl_jax.run.parts import model_config

        return model_config(config, m.vocab_size)
    path = pathlib.Path(m.hf_path)
    if not path.exists():
        path = pathlib.Path(config_file).parent / "models" / f"{path.name}.json"
    try:
        return dataclasses.replace(models.config_from_hf(path), dtype=m.dtype)
    except (FileNotFoundError, ValueError) as e:
        raise ConfigError(f"config.model.hf_path {m.hf_path!r}: {e}") from e


def check(config, config_file: str, topology: str) -> Report:
    """Compiles the train step, the largest prefill and the largest decode window for ``topology``.

    Raises:
      ConfigError: the configuration or the topology cannot be used.
    """
    chip, devices = topology_devices(topology)
    cfg = load_architecture(config, config_file)
    sizes = config.mesh
    try:
        mesh = parallel.make_mesh(sizes.data, sizes.fsdp, sizes.tensor, devices=devices)
        parallel.check_rows_of_hosts(mesh)
    except ValueError as e:
        raise ConfigError(f"config.mesh: {e}") from e
    hosts = len({d.process_index for d in devices})
    check_hosts(config, Hosts(0, hosts))
    local = host_devices(chip, devices)
    engine_mesh = parallel.generation_mesh(cfg.num_kv_heads, local)
    shape = BatchShape.from_config(config)
    with gpus.lowering_for(devices):
        state, step = _lower_step(config, cfg, mesh, shape)
    resident = _sizes(state, bool(config.model.lora.rank))
    weights, cache, generation = _lower_generation(config, cfg, engine_mesh)
    resident |= {"generation weights": _bytes(weights), "KV cache": _bytes(cache)}
    flops = _train_flops(config, cfg, shape) / mesh.size
    programs = [_compile("train step", step, flops, _bytes(state))]
    for name, lowered, total in generation:
        held = _bytes(weights) + _bytes(cache)
        programs.append(_compile(name, lowered, total / engine_mesh.size, held))
    shown = " ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    on_gpu = devices[0].platform == "gpu"
    return Report(
        title=f"{pathlib.Path(config_file).stem} on {topology}: {len(devices)} devices "
        f"({devices[0].device_kind}) on {hosts} hosts; training mesh {shown}",
        notes=[f"every host generates on {engine_mesh.size} of its {len(local)} devices, "
               f"{config.rollout.num_slots} slots of {config.rollout.max_length} tokens",
               *((gpus.NOTE,) if on_gpu else ())],
        chip=chip,
        resident=resident,
        programs=programs,
        config=config,
        shards=mesh.shape["data"] * mesh.shape["fsdp"],
        micro_tokens=shape.micro_batch_rows * shape.row_length,
        num_micro=shape.num_rows // shape.micro_batch_rows,
        overlap=bool(config.rollout.overlap),
    )  # fmt: skip


def _lower_step(config, cfg, mesh, shape):
    """(abstract state, lowered train step)."""
    optimizer = make_optimizer(config, config.train.num_iterations * config.train.minibatches)
    lora = lora_lib.from_config(config.model.lora)
    state = state_lib.abstract_state(cfg, optimizer, mesh, lora=lora)
    try:
        step = step_lib.make_train_step(
            config, cfg, optimizer, mesh, lora=lora, attention=config.model.attention
        )
        scoring = StepScoring.from_config(config)
        batch = _abstract_batch(shape, scoring.max_steps if scoring else 0)
        if scores_first(config):
            batch = batch._replace(old_logprobs=batch.rollout_logprobs)
        return state, step.lower(state, batch)
    except ValueError as e:
        raise ConfigError(str(e)) from e


def _abstract_batch(shape: BatchShape, scored_steps: int) -> TokenBatch:
    def of(kind, *sizes):
        return jax.ShapeDtypeStruct(sizes, kind)

    rows, count = (shape.num_rows, shape.row_length), shape.num_sequences
    wins = of(jnp.float32, shape.g, shape.k, shape.n, shape.r)
    steps = of(jnp.float32, *wins.shape, scored_steps) if scored_steps else None
    return TokenBatch(
        **{n: of(jnp.int32, *rows) for n in ("tokens", "positions", "segment_ids", "sequence_ids")},
        **{n: of(jnp.float32, *rows) for n in ("loss_mask", "rollout_logprobs")},
        wins=wins,
        episode_mask=wins,
        skill_valid=of(jnp.float32, shape.g, shape.n),
        role=of(jnp.int32, count),
        index=of(jnp.int32, count),
        step=of(jnp.int32, count),
        num_rows=of(jnp.int32),
        scores=wins if scored_steps else None,
        step_rewards=steps,
        step_mask=steps,
        floor_logprobs=of(jnp.float32, *rows) if shape.sampling_mask else None,
        given=of(jnp.float32, count) if shape.extra else None,
        detached=of(jnp.float32, count) if shape.extra else None,
        step_credit=of(jnp.float32, *rows) if shape.step_credit else None,
        **_abstract_sources(shape, scored_steps),
    )


def _abstract_sources(shape: BatchShape, scored_steps: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The fields of source episodes, where these are trained on."""
    if not shape.sources:
        return {}
    sizes = shape.g, shape.sources
    names = {"source_wins": sizes, "source_mask": sizes}
    if scored_steps:
        names |= dict.fromkeys(("source_step_rewards", "source_step_mask"), (*sizes, scored_steps))
    return {name: jax.ShapeDtypeStruct(size, jnp.float32) for name, size in names.items()}


def _lower_generation(config, cfg, mesh):
    """(abstract weights, abstract cache, [(name, lowered program, FLOPs of all devices)])."""
    r = config.rollout
    cfg = dataclasses.replace(cfg, dtype=r.weights_dtype or cfg.dtype)
    programs = Programs(
        cfg, num_slots=r.num_slots, max_length=r.max_length, window=r.decode_window,
        chunks=r.prefill_buckets, rows=r.row_buckets or None, columns=r.column_buckets or None,
        platform=mesh.devices.flat[0].platform,
    )  # fmt: skip
    shapes = jax.eval_shape(
        lambda: models.by_layer(parallel.cast(models.init(cfg, jax.random.key(0)), cfg.dtype))
    )
    weights = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        parallel.shardings(shapes, mesh),
    )
    cache = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=parallel.cache_sharding(mesh)),
        jax.eval_shape(lambda: models.init_cache(cfg, r.num_slots, r.max_length)),
    )
    columns, chunk = programs.columns[-1], programs.chunks[-1]
    some, all_rows = programs.row_sizes("prefill", chunk)[-1], programs.rows[-1]
    prefill = programs.lower(weights, cache, ("prefill", some, chunk, columns))
    decode = programs.lower(weights, cache, ("decode", all_rows, r.decode_window, columns))
    return (
        weights,
        cache,
        [
            (
                f"prefill {some}x{chunk}",
                prefill,
                estimate.prefill_flops(cfg, some * chunk, columns),
            ),
            (
                f"decode {all_rows}x{r.decode_window}",
                decode,
                estimate.decode_flops(cfg, all_rows * r.decode_window, columns),
            ),
        ],
    )


def _train_flops(config, cfg, shape):
    return estimate.train_flops(
        cfg,
        shape.micro_batch_rows * shape.row_length,
        shape.row_length,
        remat=config.train.remat,
        reference=uses_reference(config, detached=bool(config.replay.sequences)),
        lora=bool(config.model.lora.rank),
    )


def _bytes(tree) -> int:
    """Bytes of a device's shards of an abstract tree."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * jnp.dtype(x.dtype).itemsize
        for x in jax.tree.leaves(tree)
    )


def _sizes(state, lora: bool) -> dict[str, float]:
    return {
        "adapters" if lora else "parameters": _bytes((state.params, state.step, state.skipped)),
        "optimizer state": _bytes(state.opt_state),
        "frozen base" if lora else "reference policy": _bytes(state.ref_params),
    }


_NEEDED = re.compile(r"(?:Used |temporaries \(|required[^(]*\()([\d.]+)([KMGT])")


def _compiled(lowered):
    """Compiles; for GPUs once more without the kernels whose tiles only a device can choose."""
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as e:
        if "autotun" not in str(e).lower():
            raise
        print("a kernel needs a device to be tuned on: compiling without it", file=sys.stderr)
        return lowered.compile(compiler_options=gpus.UNTUNED)


def _compile(name, lowered, flops, arguments) -> Program:
    """Compiles; ``arguments`` are the bytes of its inputs that stay."""
    print(f"compiling: {name}", file=sys.stderr, flush=True)  # minutes, for a large model
    try:
        compiled = _compiled(lowered)
    except jax.errors.JaxRuntimeError as e:
        text = " ".join(str(e).split())
        found = _NEEDED.search(text)
        if "RESOURCE_EXHAUSTED" not in text:
            raise
        needed = float(found[1]) * 1024 ** " KMGT".index(found[2]) if found else math.inf
        error = text.partition("RESOURCE_EXHAUSTED: ")[2][:160]
        return Program(name, max(0, needed - arguments), 0, flops, error)
    m = compiled.memory_analysis()
    outputs = max(0, m.output_size_in_bytes - m.alias_size_in_bytes)
    rest = m.argument_size_in_bytes - arguments + outputs + m.generated_code_size_in_bytes
    return Program(name, m.temp_size_in_bytes, max(0, rest), flops)
