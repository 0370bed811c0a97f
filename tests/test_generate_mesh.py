"""The engine with weights and cache shared out over four devices samples what one device samples."""

import os
import pathlib
import subprocess
import sys

PROGRAM = """
import jax, numpy as np
from evolving_rl_jax import models, parallel
from evolving_rl_jax.generate.engine import Engine

cfg = models.ModelConfig(64, 32, 48, 2, 8, 4, 8, qkv_bias=True, model_type="qwen2")
params = models.init(cfg, jax.random.key(0))
assert parallel.generation_mesh(3, jax.devices()).size == 3
mesh = parallel.generation_mesh(cfg.num_kv_heads, jax.devices())
assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 4}


def play(mesh):
    engine = Engine(cfg, params, num_slots=4, max_length=32, prefill_chunk=(8,), decode_window=4,
                    row_buckets=(4,), column_buckets=(32,), mesh=mesh)
    engine.warmup()
    count, turns = engine.compile_count, []
    for turn in range(2):
        if not turn:
            sessions = [engine.open(0, i, np.arange(1, 6 + i)) for i in range(3)]
        for s in sessions:
            engine.submit(s, [7 + turn], max_new_tokens=6, top_p=0.9)
        while engine.busy:
            turns += [(g.session.episode, turn, g.tokens.tolist(), g.logprobs) for g in engine.step()]
    assert engine.compile_count == count
    shards = engine._runner.cache["k"][0].addressable_shards
    if mesh:  # layers apart are shared out as in their stack
        apart, stack = engine.params["layers"], parallel.shardings(params["layers"], mesh)
        jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(
            jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*s.spec[1:])), x.ndim
        ) or 1 / 0, apart[1], stack)
    return sorted(turns, key=lambda t: t[:2]), shards[0].data.shape


# The cache is made where it belongs: never whole on one device.
shapes, zeros = [], jax.numpy.zeros
jax.numpy.zeros = lambda *a, **k: (lambda x: shapes.append(x.sharding) or x)(zeros(*a, **k))
Engine(cfg, params, num_slots=4, max_length=32, prefill_chunk=(8,), decode_window=4, mesh=mesh)
jax.numpy.zeros = zeros
assert shapes and all(s.num_devices == 4 for s in shapes), shapes

# Weights that the trainer shares out otherwise are copied, which the plan counts.
from evolving_rl_jax.generate.memory import own_weights
training = parallel.make_mesh(1, 4, 1)
theirs = jax.device_put(params, parallel.shardings(params, training))
moved = own_weights(theirs, cfg.dtype, place=mesh)
placed = jax.device_put(theirs, parallel.shardings(params, mesh))
layers = sum(x.nbytes for x in jax.tree.leaves(params["layers"]))  # apart, so an engine's own
assert moved > layers == own_weights(placed, cfg.dtype, place=mesh), moved
assert own_weights(models.by_layer(placed), cfg.dtype, place=mesh) == 0

(one, whole), (four, part) = play(None), play(mesh)
assert whole == (4, 4, 32, 8) and part == (4, 1, 32, 8), (whole, part)
assert [t[:3] for t in one] == [t[:3] for t in four]
for a, b in zip(one, four):
    np.testing.assert_allclose(a[3], b[3], atol=1e-5)
print("same text")
"""


def test_four_devices_sample_what_one_samples():
    root = str(pathlib.Path(__file__).parents[1])
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True)
    assert "same text" in done.stdout, done.stderr
