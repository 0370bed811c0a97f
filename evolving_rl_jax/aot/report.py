"""The text of a `compile_check.Report`: a table, estimates, and what to change when it does not fit."""

from __future__ import annotations

from evolving_rl_jax.aot.check import Program, Report

_GIB = 2**30
_WIDTH = 26
_TIGHT = 0.95  # of the memory; beyond it the report says so


def render(report: Report) -> str:
    """The whole report, ready to print."""
    lines = [report.title, *report.notes, "", *_memory(report), "", *_work(report), "",
             *_verdict(report)]  # fmt: skip
    return "\n".join(lines)


def _row(label: str, cells: list[str]) -> str:
    return f"{label:<{_WIDTH}}" + "".join(f"{c:>18}" for c in cells)


def _gib(size: float) -> str:
    return f"{size / _GIB:.2f}"


def _memory(report: Report) -> list[str]:
    """Bytes of a device while each program runs."""
    programs = report.programs
    lines = [_row("GiB a device", [p.name for p in programs])]
    lines += [_row(part, [_gib(size)] * len(programs)) for part, size in report.resident.items()]
    lines.append(_row("activations, gradients", [_gib(p.temporary) for p in programs]))
    lines.append(_row("batch, code, padding", [_gib(p.other) for p in programs]))
    if report.overlap:
        lines.append(_row("beside it (overlap)", [_gib(report.beside(p)) for p in programs]))
    lines.append(_row("total", [_gib(report.total(p)) for p in programs]))
    lines.append(_row(f"memory of {report.chip.name}", [_gib(report.chip.memory)] * len(programs)))
    return lines


def _work(report: Report) -> list[str]:
    """What each program computes, for a micro-batch, a prefill chunk, a decode window; and how fast at best."""
    programs = report.programs
    once = ["micro-batch", "chunk", "window"]
    lines = [_row("a device, for one", once[: len(programs)])]
    lines.append(_row("TFLOPs (formula)", [f"{p.flops / 1e12:.2f}" for p in programs]))
    lines.append(_row("at the chip's peak", [_seconds(report.seconds(p)) for p in programs]))
    seconds = report.seconds(programs[0])
    lines.append(
        f"train step of {report.num_micro} micro-batches (every row full), a lower bound and no measurement: "
        f">= {_seconds(seconds * report.num_micro)}, {report.micro_tokens / seconds:,.0f} tokens/s"
    )
    return lines


def _seconds(value: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} us"


def _verdict(report: Report) -> list[str]:
    if report.fits:
        most = max(report.total(p) for p in report.programs) / report.chip.memory
        tight = most > _TIGHT
        note = "; tight: the runtime itself and transfers need some too" if tight else ""
        return [f"fits: {most:.0%} of the memory at most{note}"]
    worst = max(report.programs, key=report.total)
    over = report.total(worst) - report.chip.memory
    lines = [f"does not fit: {worst.name} needs {_gib(over)} GiB a device too much"]
    lines += [f"  compiler: {p.name}: {p.error}" for p in report.programs if p.error]
    return lines + [f"  {change}" for change in advice(report, worst)]


def advice(report: Report, program: Program) -> list[str]:
    """What to change so that ``program`` fits, what frees most first."""
    t, r, m = report.config.train, report.config.rollout, report.config.mesh
    training = program is report.programs[0]
    sizes = dict(report.resident) | {"temporaries": program.temporary}
    changes = {
        "parameters": "more devices for mesh.fsdp (a larger slice), or model.lora.rank > 0",
        "frozen base": "more devices for mesh.fsdp (a larger slice)",
        "generation weights": "a host with more devices: each holds a whole policy between them",
        "KV cache": f"rollout.num_slots below {r.num_slots}, or rollout.max_length below {r.max_length}",
        "temporaries": _fewer_temporaries(report, t, m) if training else
        f"rollout.row_buckets and rollout.prefill_buckets smaller, or rollout.num_slots below "
        f"{r.num_slots}",
    }  # fmt: skip
    for part in ("optimizer state", "reference policy", "adapters"):
        if part in sizes:
            sizes["parameters"] = sizes.get("parameters", 0) + sizes.pop(part)
    order = sorted((part for part in sizes if part in changes), key=lambda p: -sizes[p])
    return [f"{part} ({_gib(sizes[part])} GiB): {changes[part]}" for part in order[:3]]


def _fewer_temporaries(report, train, mesh) -> str:
    if train.micro_batch_rows > report.shards:
        return f"train.micro_batch_rows={report.shards}, one row a device (now {train.micro_batch_rows})"
    if train.remat != "full":
        return f"train.remat='full' (now {train.remat!r})"
    return f"mesh.tensor above {mesh.tensor}, or train.logprob_chunk below {train.logprob_chunk}"
