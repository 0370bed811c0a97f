"""The policy of a run is read on whatever devices there are, and nothing but the policy is."""

import json
import os
import shutil
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT

from evolving_rl_jax import config as config_lib
from evolving_rl_jax import models
from evolving_rl_jax.cli.main import main
from evolving_rl_jax.models import lora as lora_lib
from evolving_rl_jax.run.folder import RunFolder
from evolving_rl_jax.run.parts import prepare_tokenizer
from evolving_rl_jax.run.policy import load_policy

# A run folder as training on two devices leaves it: config, tokenizer and a checkpoint.
TRAINED = """
import sys
import types
import jax, numpy as np
from evolving_rl_jax import config as config_lib, parallel
from evolving_rl_jax.models import lora as lora_lib
from evolving_rl_jax.models.tokenizer import train_tokenizer
from evolving_rl_jax.rollout.prompts import COMPACT_SPECIAL_TOKENS
from evolving_rl_jax.run.folder import RunFolder
from evolving_rl_jax.run.parts import model_config
from evolving_rl_jax import models
from evolving_rl_jax.train.checkpoint import Checkpoints
from evolving_rl_jax.update.optimizer import make_optimizer
from evolving_rl_jax.update.state import kept, state_from_params

workdir, rank = sys.argv[1], int(sys.argv[2])
config = config_lib.default_config()
config.mesh.update(data=1, fsdp=2, tensor=1)
config.model.lora.rank = rank
config.warmstart.enabled = bool(rank)
folder = RunFolder(workdir, config)
folder.begin()
tokenizer = train_tokenizer(
    ["go to cabinet 3"], vocab_size=300, out_dir=folder.path / "tokenizer",
    special_tokens=COMPACT_SPECIAL_TOKENS,
)
cfg, lora = model_config(config, tokenizer.vocab_size), lora_lib.from_config(config.model.lora)
mesh = parallel.make_mesh(1, 2, 1)
base = models.init(cfg, jax.random.key(1))
if rank:
    models.save_hf(base, cfg, folder.path / "warmstart", tokenizer_dir=folder.path / "tokenizer")
optimizer = make_optimizer(config, 10)
state = state_from_params(base, cfg, optimizer, mesh, lora=lora, key=jax.random.key(2))
trained = jax.tree.map(lambda x: x + 0.5, state.params)
checkpoints = Checkpoints(folder.path / "checkpoints", config.checkpoint)
for i in (7, 8):  # what 7 has played is known by 8
    checkpoints.save(i, kept(state._replace(params=trained), lora), {"iteration": i})
    checkpoints.score(i, 1.0)
checkpoints.close()
leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(trained))
np.savez(folder.path / "trained.npz", **{jax.tree_util.keystr(k): x for k, x in leaves})
"""

EXPORT = "import sys; from evolving_rl_jax.cli.main import main; sys.exit(main(sys.argv[1:]))"


def python(code, *arguments, devices):
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    variables = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "run"
    python(TRAINED, workdir, 0, devices=2)
    return workdir


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "lora"
    python(TRAINED, workdir, 2, devices=2)
    return workdir


def arrays(params):
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(params))
    return {jax.tree_util.keystr(key): x for key, x in leaves}


def assert_trained(params, workdir):
    with np.load(workdir / "trained.npz") as trained:
        found = arrays(params)
        assert set(found) == set(trained)
        for name in trained:
            assert np.array_equal(found[name], trained[name]), name


def test_a_policy_of_two_devices_is_loaded_on_one(run):
    assert len(jax.devices()) == 1
    params, _, iteration = load_policy(RunFolder(str(run)), "best")
    assert iteration == 7
    assert_trained(params, run)


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_a_policy_of_two_devices_is_exported_on_any_number(run, tmp_path, devices):
    out = tmp_path / "policy"
    python(EXPORT, "export", f"--workdir={run}", f"--out={out}", devices=devices)
    assert_trained(models.load_hf(out)[0], run)


def test_adapters_of_two_devices_are_exported_on_one(lora_run, tmp_path):
    workdir = f"--workdir={lora_run}"
    assert main(["export", workdir, f"--out={tmp_path / 'adapter'}", "--what=adapter"]) == 0
    assert main(["export", workdir, f"--out={tmp_path / 'policy'}"]) == 0
    with np.load(lora_run / "trained.npz") as trained:
        adapters = {key: trained[key] for key in trained}
    base, cfg = models.load_hf(lora_run / "warmstart")
    lora = lora_lib.from_config(config_lib.from_json(lora_run / "config.json").model.lora)
    shapes = jax.eval_shape(lambda: lora_lib.init(cfg, lora, jax.random.key(0)))
    named = jax.tree_util.tree_map_with_path(
        lambda key, _: adapters[jax.tree_util.keystr(key)], shapes
    )
    expected, found = lora_lib.merge(base, named, lora), models.load_hf(tmp_path / "policy")[0]
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("dtype", ["", "float32", "bfloat16"])
def test_adapters_of_a_bfloat16_file_are_merged_in_float32_and_rounded_once(
    lora_run, tmp_path, capsys, dtype
):
    """The run computes in float32; its base is kept in bfloat16, which has no digits for the change."""
    workdir = shutil.copytree(lora_run, tmp_path / "run")
    base, cfg = models.load_hf(workdir / "warmstart")
    shutil.rmtree(workdir / "warmstart")
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base)
    models.save_hf(rounded, cfg, workdir / "warmstart")
    option = [f"--dtype={dtype}"] if dtype else []
    assert main(["export", f"--workdir={workdir}", f"--out={tmp_path / 'policy'}", *option]) == 0
    said = capsys.readouterr().out
    found, _ = models.load_hf(tmp_path / "policy")
    with np.load(workdir / "trained.npz") as trained:
        parts = {key: np.asarray(trained[key], np.float64) for key in trained}
    lora = lora_lib.from_config(config_lib.from_json(workdir / "config.json").model.lora)
    squares = np.zeros(3)
    for block, names in lora_lib.init(cfg, lora, jax.random.key(0))["layers"].items():
        for name in names:
            kernel = np.asarray(rounded["layers"][block][name]["kernel"], np.float64)
            a, b = (parts[f"['layers']['{block}']['{name}']['lora_{x}']"] for x in "ab")
            change = lora.scale * np.einsum("lir,lro->lio", a, b)
            merged = np.asarray(found["layers"][block][name]["kernel"], np.float64)
            lost = merged - kernel - change
            squares += [np.sum(x**2) for x in (kernel, change, lost)]
            assert (
                np.abs(lost).max()
                <= (2e-6 if dtype != "bfloat16" else 2.0**-8) * np.abs(kernel + change).max()
            )
    share = np.sqrt(squares[2] / squares[1])
    assert found["embedding"].dtype == (dtype or "float32")
    assert f"|dW|/|W| = {np.sqrt(squares[1] / squares[0]):.2g}" in said
    printed = float(said.split("|lost|/|dW| = ")[1].split()[0])
    assert printed == pytest.approx(share, rel=0.1, abs=1e-6)
    assert (share > 1e-4) == (dtype == "bfloat16")
    params, _, _ = load_policy(RunFolder(str(workdir)), "latest")  # what an evaluation plays
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def edited(lora_run, tmp_path, **model):
    """A copy of the run whose configuration has other values of ``model``, and its adapters."""
    workdir = shutil.copytree(lora_run, tmp_path / "run")
    config = json.loads((workdir / "config.json").read_text())
    config["model"].update(model)
    config["warmstart"]["enabled"] = config["warmstart"]["enabled"] and not model.get("hf_path")
    (workdir / "config.json").write_text(json.dumps(config))
    lora = lora_lib.from_config(config_lib.from_json(workdir / "config.json").model.lora)
    return workdir, lora


def test_an_evaluation_plays_the_weights_of_training_whose_base_is_in_the_models_dtype(
    lora_run, tmp_path
):
    """bfloat16(bfloat16(W) + dW), as `lora.Merger` makes them of what a run holds, of a float32 file."""
    workdir, lora = edited(lora_run, tmp_path, dtype="bfloat16")
    base, cfg = models.load_hf(workdir / "warmstart", dtype="bfloat16")
    with np.load(workdir / "trained.npz") as trained:
        shapes = jax.eval_shape(lambda: lora_lib.init(cfg, lora, jax.random.key(0)))
        adapters = jax.tree_util.tree_map_with_path(
            lambda key, _: trained[jax.tree_util.keystr(key)], shapes
        )
    params, _, _ = load_policy(RunFolder(str(workdir)), "latest")
    found = jax.tree.map(np.asarray, params)
    jax.tree.map(
        np.testing.assert_array_equal,
        found,
        jax.tree.map(np.asarray, lora_lib.merge(base, adapters, lora)),
    )


def test_a_run_that_starts_from_an_adapter_starts_from_the_base_with_it(lora_run, tmp_path):
    assert (
        main(["export", f"--workdir={lora_run}", f"--out={tmp_path / 'adapter'}", "--what=adapter"])
        == 0
    )
    base = str(lora_run / "warmstart")
    workdir, lora = edited(lora_run, tmp_path, hf_path=base, lora_adapter=str(tmp_path / "adapter"))
    params, _, iteration = load_policy(RunFolder(str(workdir)), "warmstart")
    trained, _, _ = load_policy(RunFolder(str(lora_run)), "latest")
    assert iteration == 0
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), params, trained
    )


def test_the_start_of_a_run_with_an_adapter_is_exported_in_the_type_that_is_asked_for(
    lora_run, tmp_path
):
    """Not in that of training, which rounds the base and most of a small change away."""
    adapter, out = tmp_path / "adapter", tmp_path / "out"
    assert main(["export", f"--workdir={lora_run}", f"--out={adapter}", "--what=adapter"]) == 0
    assert "<obs>" in models.load_tokenizer(adapter).special_ids
    base = lora_run / "warmstart"
    workdir, lora = edited(
        lora_run, tmp_path, hf_path=str(base), lora_adapter=str(adapter), dtype="bfloat16"
    )
    command = ["export", f"--workdir={workdir}", f"--out={out}", "--checkpoint=warmstart"]
    assert main([*command, "--dtype=float32"]) == 0
    weights, cfg = models.load_hf(base)
    adapters, _ = lora_lib.load_adapter(adapter, cfg)
    expected = lora_lib.merge(weights, adapters, lora)
    found, _ = models.load_hf(out)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


def test_what_only_training_needs_is_not_read(run, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "run")
    config = json.loads((workdir / "config.json").read_text())
    config["optimizer"]["clip_norm"] = 0.0  # the optimizer's state has another structure then
    (workdir / "config.json").write_text(json.dumps(config))
    params, _, _ = load_policy(RunFolder(str(workdir)), "latest")
    assert_trained(params, workdir)


def test_a_damaged_policy_is_one_line(run, tmp_path, capsys):
    workdir = shutil.copytree(run, tmp_path / "run")
    for path in (workdir / "checkpoints").rglob("*"):
        if path.is_file() and path.parent.name == "d":  # whichever of them holds the policy
            data = bytearray(path.read_bytes())
            for place in range(len(data) // 4, len(data), 64):  # in all arrays
                data[place] ^= 1
            path.write_bytes(data)
    assert main(["export", f"--workdir={workdir}", f"--out={tmp_path / 'out'}"]) == 2
    err = capsys.readouterr().err
    assert "must hold a readable checkpoint for 'latest', got only damaged ones" in err
    assert "Traceback" not in err and not (tmp_path / "out").exists()


def test_weights_without_their_tokenizer_get_no_other_one(tmp_path):
    config = config_lib.default_config()
    folder = RunFolder(str(tmp_path / "run"), config)
    folder.begin()
    assert not folder.has_weights
    (folder.path / "checkpoints" / "7").mkdir(parents=True)
    hosts = types.SimpleNamespace(first=True, meet=lambda name: None)
    with pytest.raises(config_lib.ConfigError, match=r"run' without tokenizer/tokenizer\.json"):
        prepare_tokenizer(config, folder, hosts, None, [], [])
    assert not (folder.path / "tokenizer").exists()
