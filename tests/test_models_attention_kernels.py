"""Every attention choice of this machine's backend, compiled as training compiles it, against plain attention.

On a CPU that is `blockwise`; on a GPU the kernel too, which other tests run by interpretation only.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evolving_rl_jax.models import attention as lib

CHOICES = ("blockwise", "pallas_gpu") if jax.default_backend() == "gpu" else ("blockwise",)


def packed(length):
    """Two rows of three sequences each, the second one ending in padding."""
    columns = np.arange(length)
    first = 1 + np.searchsorted([length // 5, length // 2], columns, side="right")
    second = np.where(columns < length - length // 7, first, 0)
    return jnp.asarray(np.stack([first, second]).astype(np.int32))


def values_and_gradients(choice, arrays, segments):
    q, k, v, w = arrays

    def loss(q, k, v):
        out = lib.attention(q, k, v, segment_ids=segments, implementation=choice)
        return jnp.sum(out.astype(jnp.float32) * w), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return [np.asarray(x, np.float32) for x in (out, *gradients)]


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("length", [96, 640])
def test_values_and_gradients_are_those_of_plain_attention(choice, dtype, dim, length):
    segments = packed(length)
    real = np.asarray(segments > 0, np.float32)[:, None, :, None]
    keys = jax.random.split(jax.random.key(length + dim), 4)
    q, w = (jax.random.normal(key, (2, 4, length, dim)) for key in keys[:2])
    k, v = (jax.random.normal(key, (2, 2, length, dim)) for key in keys[2:])
    w = w * real  # what padding gives is nobody's
    rounded = [x.astype(dtype) for x in (q, k, v)]
    exact = values_and_gradients("plain", [*(x.astype(jnp.float32) for x in rounded), w], segments)
    got = values_and_gradients(choice, [*rounded, w], segments)
    # Of the norm: 8 bits of mantissa, an order of sums.
    bound = 1e-5 if dtype == "float32" else 1e-2
    for name, ours, wanted in zip("out q k v".split(), got, exact, strict=True):
        ours, wanted = (x * real if name in ("out", "q") else x for x in (ours, wanted))
        error = np.linalg.norm(ours - wanted) / np.linalg.norm(wanted)
        assert error < bound, (name, error)
