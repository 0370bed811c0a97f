"""Weights that are gathered for their layer: one layer at a time, never kept for the gradient."""

import os
import pathlib
import subprocess
import sys

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from evolving_rl_jax import models, parallel

cfg = models.ModelConfig(64, 256, 1024, 8, 4, 4, 64)
mesh = parallel.make_mesh(1, 8, 1)
params = models.init(cfg, jax.random.key(0))
tokens = jnp.arange(64, dtype=jnp.int32).reshape(8, 8)

def loss(params, mesh, remat):
    hidden, _ = models.apply(params, cfg, tokens, remat=remat, mesh=mesh)
    return jnp.sum(jnp.sin(hidden))

step = jax.jit(jax.value_and_grad(loss), static_argnums=(1, 2))
expected = step(params, None, "none")
placed = jax.device_put(params, parallel.shardings(params, mesh))
whole = sum(x.nbytes for x in jax.tree.leaves(params["layers"]))
for remat in ("none", "dots", "full"):
    compiled = step.lower(placed, mesh, remat).compile()
    value, gradients = compiled(placed)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * abs(b).max()),
                 (value, gradients), expected)
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert temporary < 0.7 * whole, (remat, temporary, whole)
    kept = jax.tree.map(lambda g, p: g.sharding.is_equivalent_to(p.sharding, p.ndim),
                        gradients["layers"], placed["layers"])
    assert all(jax.tree.leaves(kept)), "gradients are shards too"
print("one layer at a time")
"""


def test_no_remat_policy_keeps_gathered_weights():
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    root = str(pathlib.Path(__file__).parents[1])
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True)
    assert "one layer at a time" in done.stdout, done.stderr[-2000:]
