"""Arithmetic, the fit report and its exit code; with libtpu a real slice as well."""

import copy
import dataclasses
import importlib.util
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("ml_collections")

from evolving_rl_jax import models, parallel
from evolving_rl_jax.aot import check as compile_check
from evolving_rl_jax.aot import chips, estimate, gpus
from evolving_rl_jax.aot import report as compile_report
from evolving_rl_jax.cli import main as cli
from evolving_rl_jax.config import ConfigError, load_config
from evolving_rl_jax.rollout.batch import BatchShape, make_batch
from evolving_rl_jax.rollout.evolve import Experience, Source

ROOT = pathlib.Path(__file__).parents[1]
SMALL = """
from evolving_rl_jax.config import default_config


def get_config():
    config = default_config()
    config.model.update(vocab_size=512, hidden_size=256, intermediate_size=256, num_layers=2,
                        num_heads=2, num_kv_heads=2, dtype="bfloat16")
    config.rollout.update(num_sources=2, num_retrieved=1, num_skills=2, num_slots=8,
                          max_length=256, max_skill_tokens=64, decode_window=8,
                          prefill_buckets=(64,), row_buckets=(8,))
    config.train.update(row_length=256, micro_batch_rows=4, logprob_chunk=128)
    config.mesh.update(data=1, fsdp=-1, tensor=1)
    return config
"""


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(SMALL, encoding="utf-8")
    return str(path)


# -- arithmetic ------------------------------------------------------------------------------------


def test_flops_are_those_of_the_compiler_on_an_unrolled_model():
    cfg = models.ModelConfig(512, 64, 128, 1, 4, 2, 16, tie_word_embeddings=False)
    params = jax.eval_shape(lambda: models.init(cfg, jax.random.key(0)))
    rows, columns = 4, 64
    cache = jax.eval_shape(lambda: models.init_cache(cfg, rows, columns))
    tokens = jax.ShapeDtypeStruct((rows, 1), jnp.int32)

    def one(params, tokens, cache):
        hidden, _ = models.apply(params, cfg, tokens, positions=tokens, cache=cache)
        return models.logits(params, cfg, hidden)

    counted = jax.jit(one).lower(params, tokens, cache).compile().cost_analysis()["flops"]
    assert estimate.decode_flops(cfg, rows, columns) == pytest.approx(counted, rel=0.15)
    matrices = [x.size for x in jax.tree.leaves(params["layers"]) if x.ndim == 3]
    assert estimate.layer_weights(cfg) == sum(matrices)


def test_training_takes_more_with_remat_and_a_reference_and_less_with_adapters():
    cfg = models.ModelConfig(512, 64, 128, 2, 4, 2, 16)

    def flops(remat="none", reference=False, lora=False):
        return estimate.train_flops(cfg, 100, 50, remat=remat, reference=reference, lora=lora)

    matmul = 2 * 100 * (estimate.layer_weights(cfg) + estimate.unembedding_weights(cfg))
    assert flops() > 3 * matmul
    assert flops(lora=True) < flops() < flops(remat="full") < flops(remat="full", reference=True)


@pytest.mark.parametrize(
    "name",
    ["h100:0", "h100", "b100:1", "v5p", "v5p:4x4", "v5e:2x2x4", "h100:2x2", "v5e:0x4", "v5e:2x2 "],
)
def test_topology_names_are_checked(name):
    with pytest.raises(
        ConfigError, match="--topology must be CHIP:SIDES .*v4, v5e, v5p, v6e.*a100, h100"
    ):
        compile_check.topology_devices(name)


def test_several_gpus_are_refused_before_their_compiler_crashes():
    with pytest.raises(ConfigError, match="--topology must be one GPU, got 'l4:2': .*ask for l4:1"):
        compile_check.topology_devices("l4:2")


def test_topology_of_less_than_a_host():
    assert chips.parse_topology("v5e:1x1")[1] == (1, 1)
    assert chips.host_bounds((1, 1)) == (1, 1, 1)
    assert chips.host_bounds((2, 2)) is None


def test_a_card_is_told_to_the_compiler_in_its_own_words():
    card, kind, count = gpus.parse_topology("l4:2")
    assert (kind, count, card.capability) == ("l4", 2, (8, 9))
    assert gpus.parse_topology("v5e:2x2") is None
    text = gpus.target_config(card)
    for line in (
        *("core_count: 58", "shared_memory_per_core: 102400", "memory_bandwidth: 300000000000"),
        *("shared_memory_per_block_optin: 101376", 'platform_name: "CUDA"', "major: 8 minor: 9"),
    ):
        assert line in text
    for kind, card in gpus.CARDS.items():
        chip = card.chip(kind)
        assert chip.memory < card.memory and chip.flops > card.bandwidth
        assert gpus.target_config(card).count("{") == gpus.target_config(card).count("}")


def test_what_cannot_be_tuned_without_a_device_is_compiled_without_it(capsys):
    class Lowered:
        def compile(self, compiler_options=None):
            if compiler_options is None:
                raise jax.errors.JaxRuntimeError("INTERNAL: Autotuning failed: no default config")
            return compiler_options

    assert compile_check._compiled(Lowered()) == gpus.UNTUNED
    assert "without it" in capsys.readouterr().err


# -- the command -----------------------------------------------------------------------------------


def stand_in(memory):
    """This process's own device in the place of a slice; ``memory`` bytes of it may be used."""
    return chips.Chip("stand-in", memory, 1e12), jax.devices()[:1]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The report of the small configuration, made once."""
    path = tmp_path_factory.mktemp("compiled") / "small.py"
    path.write_text(SMALL, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compile_check, "topology_devices", lambda name: stand_in(2**30))
        return compile_check.check(load_config(str(path)), str(path), "v5e:1x1")


@pytest.fixture
def report(compiled):
    """A copy that a test may change."""
    parts = {"resident": dict(compiled.resident), "programs": copy.deepcopy(compiled.programs)}
    return dataclasses.replace(compiled, **parts)


def test_what_fits_exits_0_and_prints_every_part(monkeypatch, capsys, small, report):
    monkeypatch.setattr(compile_check, "check", lambda *_: report)
    assert cli.main(["compile", f"--config={small}", "--topology=v5e:1x1"]) == 0
    out = capsys.readouterr().out
    for part in (
        *("parameters", "optimizer state", "reference policy", "generation weights", "KV cache"),
        *("activations, gradients", "TFLOPs", "no measurement", "fits: "),
    ):
        assert part in out, out
    assert "small on v5e:1x1: 1 devices" in out


def test_with_overlap_both_programs_are_alive(report):
    """A rollout plays while the step trains: the temporaries of both count, and are shown."""
    step, *generation = report.programs
    largest = max(p.temporary + p.other for p in generation)
    both = dataclasses.replace(report, overlap=True)
    assert both.total(step) == report.total(step) + largest
    assert both.total(generation[0]) == report.total(generation[0]) + step.temporary + step.other
    assert "beside it (overlap)" in compile_report.render(both)
    assert "overlap" not in compile_report.render(report)
    chip = stand_in(report.total(step) + largest / 2)[0]
    assert dataclasses.replace(report, chip=chip).total(step) <= chip.memory
    assert not dataclasses.replace(both, chip=chip).fits


def test_what_hardly_fits_is_said(report):
    most = max(report.total(p) for p in report.programs)
    report.chip = stand_in(most / 0.97)[0]
    assert compile_report.render(report).splitlines()[-1].startswith("fits: 97% of the memory")
    assert "tight" in compile_report.render(report)
    report.chip = stand_in(most / 0.5)[0]
    assert "tight" not in compile_report.render(report)


def test_what_does_not_fit_exits_1_and_says_what_to_change(monkeypatch, capsys, small, report):
    report.chip = stand_in(2**20)[0]
    monkeypatch.setattr(compile_check, "check", lambda *_: report)
    assert cli.main(["compile", f"--config={small}", "--topology=v5e:1x1"]) == 1
    out = capsys.readouterr().out
    assert "does not fit: " in out and "GiB a device too much" in out
    assert "rollout.num_slots below 8" in out


def test_sizes_are_those_of_the_shards(report, small):
    cfg = compile_check.load_architecture(report.config, small)
    count = sum(x.size for x in jax.tree.leaves(models.init(cfg, jax.random.key(0))))
    assert report.resident["parameters"] == pytest.approx(4 * count, abs=16)
    assert report.resident["optimizer state"] == pytest.approx(8 * count, abs=16)
    norms = 2 * 256 * 2 + 256  # scales, of two a layer and the last one, stay in float32
    assert report.resident["reference policy"] == 2 * count + 2 * norms
    assert report.resident["KV cache"] == 8 * 256 * 2 * 2 * 2 * 128 * 2
    assert [p.name for p in report.programs] == ["train step", "prefill 8x64", "decode 8x8"]
    assert (report.micro_tokens, report.num_micro) == (4 * 256, 2)


def test_the_lower_bound_of_the_step_is_its_arithmetic_at_the_peak(report):
    step = report.programs[0]
    assert report.seconds(step) == step.flops / 1e12
    speed = f"{report.micro_tokens / report.seconds(step):,.0f} tokens/s"
    assert speed in compile_report.render(report)


def test_out_of_memory_of_the_compiler_is_a_figure(small):
    class Lowered:
        def compile(self):
            text = "RESOURCE_EXHAUSTED: Ran out of memory. Used 23.50G of 15.75G hbm. Exceeded."
            raise jax.errors.JaxRuntimeError(text)

    found = compile_check._compile("train step", Lowered(), 1.0, 2**30)
    assert found.temporary == 22.5 * 2**30 and found.error.startswith("Ran out of memory")


def test_advice_names_the_largest_part(report):
    step, prefill, _ = report.programs
    step.temporary = prefill.temporary = 1e12
    assert "train.micro_batch_rows=1" in compile_report.advice(report, step)[0]
    assert "rollout.row_buckets" in compile_report.advice(report, prefill)[0]
    report.resident["parameters"] = 1e13
    assert "mesh.fsdp" in compile_report.advice(report, step)[0]


def test_a_mistake_is_one_line(monkeypatch, capsys, small):
    assert cli.main(["compile", f"--config={small}", "--topology=v5p"]) == 2
    assert "--topology must be CHIP:SIDES" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["compile", f"--config={small}", "--topology=v5e:2x2"]) == 2
    assert 'pip install ".[tpu]"' in capsys.readouterr().err
    assert cli.main(["compile", f"--config={small}", "--topology=h100:1"]) == 2
    assert 'pip install ".[cuda]"' in capsys.readouterr().err
    monkeypatch.setattr(compile_check, "topology_devices", lambda name: stand_in(2**30))
    command = ["compile", f"--config={small}", "--topology=v5e:1x1"]
    assert cli.main([*command, "--config.mesh.tensor=3"]) == 2
    assert "config.mesh: mesh axis sizes" in capsys.readouterr().err
    assert cli.main([*command, "--config.model.hf_path=some/model"]) == 2
    error = capsys.readouterr().err
    assert "config.model.hf_path 'some/model'" in error and "models/model.json" in error


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("alfworld_qwen2_5_7b", 7.62),
        ("alfworld_qwen3_1_7b", 1.72),
        ("alfworld_qwen2_5_7b_lora", 7.62),
        ("smollm2", 0.13),
    ],
)
def test_architectures_of_the_configs_are_here_without_a_download(name, billions):
    path = str(ROOT / "configs" / f"{name}.py")
    cfg = compile_check.load_architecture(load_config(path), path)
    shapes = jax.eval_shape(lambda: models.init(cfg, jax.random.key(0)))
    assert sum(x.size for x in jax.tree.leaves(shapes)) / 1e9 == pytest.approx(billions, abs=0.01)
    assert cfg.dtype == "bfloat16"


def test_generation_uses_as_many_devices_as_key_heads_allow():
    devices = [jax.devices()[0]] * 8
    for heads, expected in ((4, 4), (8, 8), (3, 3), (1, 1), (7, 7)):
        assert parallel.generation_mesh(heads, np.array(devices)).size == expected


@pytest.mark.slow
def test_a_mesh_may_split_the_sides_of_a_slice():
    pytest.importorskip("libtpu")
    devices = compile_check.topology_devices("v6e:4x4")[1]
    mesh = parallel.make_mesh(1, 8, 2, devices=devices)
    assert dict(mesh.shape) == {"data": 1, "fsdp": 8, "tensor": 2}
    assert len({d.id for d in mesh.devices.flat}) == 16


@pytest.mark.slow
def test_a_slice_of_several_hosts(capfd, small):
    """On v6e:4x4 the chips of the first host are 0, 1, 4 and 5 of the slice."""
    pytest.importorskip("libtpu")
    command = ["compile", f"--config={small}", "--topology=v6e:4x4"]
    heads = ["--config.model.num_heads=4", "--config.model.num_kv_heads=4"]
    command = [*command, *heads, "--config.train.micro_batch_rows=16"]
    assert cli.main(command) == 2  # as `train` would say there
    assert "must be a multiple of the number of processes (4), got 2" in capfd.readouterr().err
    assert cli.main([*command, "--config.rollout.num_sources=4"]) == 0
    assert "16 devices (TPU v6 lite) on 4 hosts" in capfd.readouterr().out


@pytest.mark.slow
def test_a_real_slice(capfd, small):
    pytest.importorskip("libtpu")
    command = ["compile", f"--config={small}", "--topology=v5e:2x2"]
    assert cli.main(command) == 0
    out = capfd.readouterr().out
    assert "4 devices (TPU v5 lite) on 1 hosts" in out and "GiB a device" in out
    cache = "--config.rollout.num_slots=100000"
    assert cli.main([*command, cache, "--config.rollout.row_buckets=100000"]) == 1
    assert "rollout.num_slots below 100000" in capfd.readouterr().out


@pytest.fixture
def cuda_compiler():
    """XLA's compiler for GPUs, which needs none."""
    if importlib.util.find_spec(gpus.PLUGIN) is None:
        pytest.skip("jax's CUDA plugin is not installed: pip install '.[cuda]'")


@pytest.mark.slow
def test_real_cards(program, small, cuda_compiler):
    # In a process of its own: XLA's GPU compiler is not there for one that has its devices already.
    for topology in ("h100:1", "l4:1"):
        result = program("compile", f"--config={small}", f"--topology={topology}")
        assert result.returncode == 0, result.stderr[-3000:]
        out = result.stdout
        assert f"small on {topology}: {topology[-1]} devices (NVIDIA" in out
        assert "GiB a device" in out and "XLA_PYTHON_CLIENT_MEM_FRACTION=0.92" in out
        assert f"memory of {topology[:-2]}" in out


@pytest.mark.slow
def test_sharded_weights_are_gathered_before_their_products(tmp_path, monkeypatch):
    """The TPU compiler would otherwise add up partial products around a ring."""
    pytest.importorskip("libtpu")
    for name, value in {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}.items():
        monkeypatch.setenv(name, value)
    path = tmp_path / "wide.py"
    path.write_text(SMALL, encoding="utf-8")
    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_heads": 16, "num_kv_heads": 16}
    overrides = {f"model.{key}": str(value) for key, value in sizes.items()}
    overrides |= {"rollout.max_length": "2048", "train.row_length": "2048"}
    texts = []
    compiled = compile_check.jax.stages.Lowered.compile

    def keep(lowered, *args, **kwargs):
        found = compiled(lowered, *args, **kwargs)
        texts.append(found.as_text())
        return found

    monkeypatch.setattr(compile_check.jax.stages.Lowered, "compile", keep)
    compile_check.check(load_config(str(path), overrides), str(path), "v5e:2x2")
    gathers = re.findall(r" all-gather(?:-start)?\(", texts[0])
    # Policy, reference and policy again in the backward pass: the scan over layers has each matrix once.
    assert len(gathers) >= 3 * 7


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sampling_mask": True},
        {"step_credit": True},
        {"sources": 2},
        {"extra": 3},
        {"sources": 2, "extra": 3},
    ],
)
def test_the_batch_that_is_lowered_has_the_fields_of_those_that_are_made(steps, changes):
    shape = BatchShape(2, 3, 2, 1, 64, 4, **changes)
    sizes = (shape.g, shape.k, shape.n, shape.r)
    arrays = {"wins": sizes, "episode_mask": sizes, "skill_valid": sizes[::2]}
    if steps:
        arrays |= {"scores": sizes, "step_rewards": (*sizes, steps), "step_mask": (*sizes, steps)}
    if shape.sources:
        episodes = shape.g, shape.sources
        arrays |= dict.fromkeys(("source_wins", "source_mask"), episodes)
        if steps:
            by_step = dict.fromkeys(("source_step_rewards", "source_step_mask"), (*episodes, steps))
            arrays |= by_step
    zeros = {name: np.zeros(size, np.float32) for name, size in arrays.items()}
    sources = [Source(task=None) for _ in range(shape.g)]
    made = make_batch(Experience(sources, **zeros), shape)
    lowered = compile_check._abstract_batch(shape, steps)
    for name, value in made._asdict().items():
        found = getattr(lowered, name)
        assert (found is None) == (value is None), name
        if value is not None:
            assert (found.shape, found.dtype) == (np.shape(value), np.asarray(value).dtype), name
