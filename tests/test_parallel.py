"""Meshes and sharding rules; eight virtual devices against one, in a subprocess."""

import os
import re
import subprocess
import sys
import textwrap
import time
from concurrent import futures

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from evolving_rl_jax import models, parallel
from evolving_rl_jax.types import ROW_FIELDS, TokenBatch

CFG = models.ModelConfig(64, 32, 48, 2, 4, 2, 8, qkv_bias=True, tie_word_embeddings=False)
SHAPES = jax.eval_shape(lambda: models.init(CFG, jax.random.key(0)))


def test_mesh_sizes_are_checked():
    count = len(jax.devices())
    mesh = parallel.make_mesh()
    assert dict(mesh.shape) == {"data": 1, "fsdp": count, "tensor": 1}
    with pytest.raises(ValueError, match=f"number of devices, {count}, got data=3, fsdp=-1"):
        parallel.make_mesh(data=3, devices=jax.devices()[:1] * count)
    with pytest.raises(ValueError, match="positive, at most one -1, got data=-1, fsdp=-1"):
        parallel.make_mesh(data=-1, fsdp=-1)
    with pytest.raises(ValueError, match="positive, at most one -1, got data=1, fsdp=0"):
        parallel.make_mesh(fsdp=0)


def test_rules_find_parameters_and_the_optimizer_state_that_mirrors_them():
    optax = pytest.importorskip("optax")
    mesh = parallel.make_mesh()
    specs = jax.tree.map(lambda s: s.spec, parallel.shardings(SHAPES, mesh))
    assert specs["embedding"] == specs["unembedding"] == P("tensor", "fsdp")
    assert specs["layers"]["attention"]["o_proj"]["kernel"] == P(None, "tensor", "fsdp")
    assert specs["layers"]["attention"]["k_proj"]["bias"] == P(None, "tensor")
    assert specs["layers"]["mlp"]["norm"] == P()
    state = jax.eval_shape(optax.adamw(1e-3).init, SHAPES)
    mirrored = jax.tree.map(lambda s: s.spec, parallel.shardings(state, mesh))
    assert mirrored[0].mu == mirrored[0].nu == specs
    assert mirrored[0].count == P()
    with pytest.raises(ValueError, match=r"adapter \(3,\) must match a sharding rule"):
        parallel.shardings({"adapter": np.zeros(3)}, mesh)


def test_batch_goes_to_the_mesh():
    mesh = parallel.make_mesh()
    batch = {"tokens": np.arange(24).reshape(8, 3), "wins": np.ones((2, 3)), "num_rows": 5}
    placed = parallel.host_local_to_global(batch, mesh)
    jax.tree.map(np.testing.assert_array_equal, batch, placed)
    assert placed["tokens"].sharding.spec == P(parallel.ROWS)
    assert placed["wins"].sharding.spec == placed["num_rows"].sharding.spec == P()


PROGRAM = """
import dataclasses, sys, jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec as P
from evolving_rl_jax import models, parallel
assert len(jax.devices()) == 8
cfg = models.ModelConfig(64, 32, 48, 2, 4, 2, 8, qkv_bias=True, tie_word_embeddings=False)
params = models.init(cfg, jax.random.key(0))
rng = np.random.default_rng(0)
segments = np.repeat([[1, 2]] * 8, 20, axis=1)
batch = dict(tokens=rng.integers(0, 64, (8, 40)), segment_ids=segments)

def loss(params, batch, implementation):
    hidden, _ = models.apply(params, cfg, batch["tokens"], segment_ids=batch["segment_ids"],
                             remat="none", implementation=implementation)
    return jnp.mean(jax.nn.logsumexp(models.logits(params, cfg, hidden), -1))

value, gradient = jax.jit(jax.value_and_grad(loss), static_argnums=2)(params, batch, "plain")
for sizes, implementation in (
    ((8, 1, 1), "plain"), ((1, 2, 4), "plain"), ((2, 2, 2), "blockwise")):
    mesh = parallel.make_mesh(*sizes)
    shardings = parallel.shardings(params, mesh)
    placed = jax.device_put(params, shardings)
    step = jax.jit(jax.value_and_grad(loss), static_argnums=2, out_shardings=(None, shardings))
    rows = parallel.host_local_to_global(batch, mesh)
    got, got_gradient = step(placed, rows, implementation)
    np.testing.assert_allclose(got, value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got_gradient, gradient)

folder = sys.argv[1]
models.save_hf(placed, dataclasses.replace(cfg, model_type="qwen2"), folder)
mesh = parallel.make_mesh(1, 4, 2)
shardings = parallel.shardings(params, mesh)
loaded, _ = models.load_hf(folder, shardings=shardings)
jax.tree.map(np.testing.assert_array_equal, loaded, params)
assert jax.tree.map(lambda a: a.sharding, loaded) == shardings
assert loaded["layers"]["mlp"]["up_proj"]["kernel"].addressable_shards[0].data.shape == (2, 8, 24)

uneven = jax.ShapeDtypeStruct((63, 32), jnp.float32)
assert parallel.shardings({"embedding": uneven}, mesh)["embedding"].spec == P(None, "fsdp")
try:
    parallel.host_local_to_global({"tokens": np.zeros((6, 4))}, mesh)
    raise SystemExit("six rows over four devices must be an error")
except ValueError as error:
    assert "tokens must have a number of rows that data x fsdp = 4 divides" in str(error), error
try:
    parallel.make_mesh(3, 1, 2)
    raise SystemExit("six is not eight")
except ValueError as error:
    assert "must multiply to the number of devices, 8, got data=3, fsdp=1, tensor=2" in str(error)
print("all equal")
"""


def test_eight_devices_equal_one(tmp_path):
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path / "model")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "all equal" in done.stdout, done.stderr


def test_programs_are_started_one_after_the_other():
    inside, seen = [], []

    def program(x, *, more):
        inside.append(x)
        seen.append(len(inside))
        time.sleep(0.001)
        inside.remove(x)
        return x + more

    first, second = parallel.in_order(program), parallel.in_order(program)
    with futures.ThreadPoolExecutor(8) as pool:
        numbers = range(40)
        results = pool.map(lambda n: (first if n % 2 else second)(n, more=1), numbers)
    assert list(results) == [n + 1 for n in numbers] and set(seen) == {1}


def test_the_fields_of_rows_and_no_others_are_spread_over_the_devices():
    for name in TokenBatch._fields:
        spec = next(spec for pattern, spec in parallel.BATCH_RULES if re.search(pattern, name))
        assert (spec == P(parallel.ROWS)) == (name in ROW_FIELDS), name
