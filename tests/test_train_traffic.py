"""Bytes that compiled programs move, against programs whose bytes are counted by hand."""

import textwrap

import jax
import jax.numpy as jnp
import pytest

from evolving_rl_jax.aot import hlo, traffic

TEXT = textwrap.dedent("""
    HloModule jit_f, is_scheduled=true

    %fused (p.0: f32[10,64], p.1: s32[]) -> f32[1,64] {
      %p.0 = f32[10,64]{1,0} parameter(0)
      %p.1 = s32[]{:T(128)} parameter(1)
      %z = s32[] constant(0)
      ROOT %slice = f32[1,64]{1,0} dynamic-slice(%p.0, %p.1, %z), dynamic_slice_sizes={1,64}
    }

    %body (w: (s32[], f32[10,64])) -> (s32[], f32[10,64]) {
      %w = (s32[], f32[10,64]{1,0}) parameter(0)
      %i = s32[] get-tuple-element(%w), index=0
      %x = f32[10,64]{1,0} get-tuple-element(%w), index=1
      %row = f32[1,64]{1,0:T(8,128)} fusion(%x, %i), kind=kLoop, calls=%fused
      %all = bf16[4,64]{1,0:T(8,128)(2,1)S(1)} all-gather(%row), dimensions={0}
      ROOT %t = (s32[], f32[10,64]{1,0}) tuple(%i, %x)
    }

    %condition (w.1: (s32[], f32[10,64])) -> pred[] {
      %n = s32[]{:T(128)} constant(5)
      %w.1 = (s32[], f32[10,64]{1,0}) parameter(0)
      %i.1 = s32[] get-tuple-element(%w.1), index=0
      ROOT %lt = pred[] compare(%i.1, %n), direction=LT
    }

    ENTRY %main (a: f32[10,64]) -> f32[10,64] {
      %a = f32[10,64]{1,0} parameter(0)
      %zero = s32[] constant(0)
      %start = (s32[], f32[10,64]{1,0}) tuple(%zero, %a)
      %loop = (s32[], f32[10,64]{1,0}) while(%start), condition=%condition, body=%body
      %out = f32[10,64]{1,0} get-tuple-element(%loop), index=1
      %sum = (f32[10,64]{1,0}, f32[10,64]{1,0}) all-reduce-start(%out), to_apply=%add
      ROOT %done = f32[10,64]{1,0} all-reduce-done(%sum)
    }
""")


def test_traffic_counts_loops_slices_and_collectives():
    found = traffic.of_program(TEXT)
    assert found.counts == {"all-gather": 5, "all-reduce": 1}
    assert found.sent_bytes == {"all-gather": 5 * 4 * 64 * 2, "all-reduce": 2 * 10 * 64 * 4}
    # A turn of the loop reads one row (and its number), writes it, and gathers it on the chip; the
    # reduction at the end reads its operand and writes its result.
    loop = 5 * ((256 + 4 + 256) + 256)
    assert found.hbm_bytes == loop + 2 * 10 * 64 * 4


# What the TPU compiler makes of a product with one layer's weights: the slice is in a fusion of its
# own inside the one of the product, and the ring around it does two turns at a time.
NESTED = textwrap.dedent("""
    HloModule jit_g, is_scheduled=true

    %slice (q.0: bf16[28,64,32]) -> bf16[64,32] {
      %q.0 = bf16[28,64,32]{2,1,0} parameter(0)
      %one = bf16[1,64,32]{2,1,0} slice(%q.0), slice={[3:4], [0:64], [0:32]}
      ROOT %view.0 = bf16[64,32]{1,0} bitcast(%one)
    }

    %same (q.1: bf16[8,64]) -> bf16[8,64] {
      %q.1 = bf16[8,64]{1,0} parameter(0)
      ROOT %view.1 = bf16[8,64]{1,0} bitcast(%q.1)
    }

    %product (p.0: bf16[28,64,32], p.1: bf16[8,64]) -> bf16[8,32] {
      %p.0 = bf16[28,64,32]{2,1,0} parameter(0)
      %p.1 = bf16[8,64]{1,0} parameter(1)
      %weights = bf16[64,32]{1,0} fusion(%p.0), kind=kLoop, calls=%slice
      %states = bf16[8,64]{1,0} fusion(%p.1), kind=kLoop, calls=%same
      ROOT %conv = bf16[8,32]{1,0} convolution(%states, %weights), dim_labels=bf_io->bf
    }

    %start (s.0: bf16[8,64]) -> (bf16[8,64], bf16[16,64]) {
      %s.0 = bf16[8,64]{1,0} parameter(0)
      %gather.0 = bf16[16,64]{1,0} all-gather(%s.0), channel_id=3, dimensions={0}
      ROOT %begin = (bf16[8,64]{1,0}, bf16[16,64]{1,0}) custom-call(%gather.0), custom_call_target="AsyncCollectiveStart"
    }

    %finish (f.0: bf16[8,64], f.1: bf16[16,64]) -> bf16[16,64] {
      %f.0 = bf16[8,64]{1,0} parameter(0)
      %f.1 = bf16[16,64]{1,0} parameter(1)
      %gather.1 = bf16[16,64]{1,0} all-gather(%f.0), channel_id=3, dimensions={0}
      ROOT %end = bf16[16,64]{1,0} custom-call(%f.0, %f.1, %gather.1), custom_call_target="AsyncCollectiveDone"
    }

    %body (w: (u32[], bf16[28,64,32], bf16[8,64], bf16[8,32])) -> (u32[], bf16[28,64,32], bf16[8,64], bf16[8,32]) {
      %w = (u32[], bf16[28,64,32]{2,1,0}, bf16[8,64]{1,0}, bf16[8,32]{1,0}) parameter(0)
      %i = u32[] get-tuple-element(%w), index=0
      %stack = bf16[28,64,32]{2,1,0} get-tuple-element(%w), index=1
      %x = bf16[8,64]{1,0} get-tuple-element(%w), index=2
      %unit = u32[] constant(1)
      %half = u32[] add(%i, %unit)
      %next = u32[] add(%half, %unit)
      %y = bf16[8,32]{1,0} fusion(%stack, %x), kind=kOutput, calls=%product
      ROOT %t = (u32[], bf16[28,64,32]{2,1,0}, bf16[8,64]{1,0}, bf16[8,32]{1,0}) tuple(%next, %stack, %x, %y)
    }

    %condition (w.1: (u32[], bf16[28,64,32], bf16[8,64], bf16[8,32])) -> pred[] {
      %w.1 = (u32[], bf16[28,64,32]{2,1,0}, bf16[8,64]{1,0}, bf16[8,32]{1,0}) parameter(0)
      %limit = u32[] constant(9)
      %i.1 = u32[] get-tuple-element(%w.1), index=0
      ROOT %lt = pred[] compare(%i.1, %limit), direction=LT
    }

    ENTRY %main (a: bf16[28,64,32], b: bf16[8,64], c: bf16[8,32]) -> bf16[16,64] {
      %a = bf16[28,64,32]{2,1,0} parameter(0)
      %b = bf16[8,64]{1,0} parameter(1)
      %c = bf16[8,32]{1,0} parameter(2)
      %first = u32[] constant(1)
      %state = (u32[], bf16[28,64,32]{2,1,0}, bf16[8,64]{1,0}, bf16[8,32]{1,0}) tuple(%first, %a, %b, %c)
      %loop = (u32[], bf16[28,64,32]{2,1,0}, bf16[8,64]{1,0}, bf16[8,32]{1,0}) while(%state), condition=%condition, body=%body
      %begun = (bf16[8,64]{1,0}, bf16[16,64]{1,0}) fusion(%b), kind=kCustom, calls=%start
      %shard = bf16[8,64]{1,0} get-tuple-element(%begun), index=0
      %buffer = bf16[16,64]{1,0} get-tuple-element(%begun), index=1
      ROOT %done = bf16[16,64]{1,0} fusion(%shard, %buffer), kind=kCustom, calls=%finish
    }
""")


def test_nested_slices_steps_of_a_ring_and_collectives_beside_other_work():
    found = traffic.of_program(NESTED)
    assert found.counts == {"all-gather": 1}  # in two fusions, but one channel
    assert found.sent_bytes == {"all-gather": 16 * 64 * 2}
    # From 1 in steps of 2 below 9: four turns, each with one layer of the 28, the states, the result.
    # The additions move the counter, 4 bytes in and out with a constant of 4 beside it.
    turn = (64 * 32 + 8 * 64 + 8 * 32) * 2 + 2 * 3 * 4
    assert found.hbm_bytes == 4 * turn + 16 * 64 * 2
    computations, entry = hlo.parse(NESTED)
    loop = computations[entry].by_name["loop"]
    assert hlo.trip_count(loop, computations[entry], computations) == 4


def test_bytes_of_shapes():
    assert hlo.array_bytes("(bf16[2,3]{1,0}, /*index=1*/pred[5]{0}, f32[])") == 12 + 5 + 4
    on_chip = "(f32[8]{0:T(128)S(1)}, u32[]{:S(2)}, s8[8]{0})"
    assert hlo.array_bytes(on_chip, memory_only=True) == 8
    with pytest.raises(ValueError, match="ENTRY"):
        traffic.of_program("nothing")


def moved(function, *arguments, **options):
    compiled = jax.jit(function, **options).lower(*arguments).compile()
    return traffic.of_program(compiled.as_text()).hbm_bytes


def test_a_product_moves_its_three_matrices():
    a, b = jnp.ones((256, 512)), jnp.ones((512, 128))
    assert moved(jnp.matmul, a, b) == a.nbytes + b.nbytes + 256 * 128 * 4


def test_an_update_in_place_moves_what_it_changes():
    cache, new = jnp.zeros((64, 4096, 16)), jnp.ones((64, 1, 16))

    def write(cache, new, at):
        return jax.lax.dynamic_update_slice(cache, new, (0, at, 0))

    found = moved(write, cache, new, jnp.int32(5), donate_argnums=0)
    assert 2 * new.nbytes <= found <= 2 * new.nbytes + 100
    # Without the donation the whole buffer is copied first.
    assert moved(write, cache, new, jnp.int32(5)) >= 2 * cache.nbytes


def test_a_scatter_into_a_large_buffer_counts_what_it_changes():
    found = moved(
        lambda x, i, u: x.at[i].set(u),
        jnp.zeros((4096, 64)), jnp.arange(3), jnp.ones((3, 64)), donate_argnums=0,
    )  # fmt: skip
    assert found < 20 * 3 * 64 * 4


def test_a_scan_reads_each_layer_once():
    weights, x = jnp.ones((7, 128, 128)), jnp.ones((64, 128))

    def f(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    # At least each layer and the state in and out.  On CPU a layer is copied out of the stack before
    # its product, and the state may be in and out of the product, of tanh and of a copy.
    least, most = weights.nbytes + 7 * 2 * x.nbytes, 3 * weights.nbytes + 7 * 6 * x.nbytes
    assert least <= moved(f, x, weights) <= most

    # A loop that may end early counts with its limit.
    def g(x, w):
        def body(s):
            return s[0] + 1, jnp.tanh(s[1] @ w)

        return jax.lax.while_loop(lambda s: (s[0] < 7) & (s[1][0, 0] < 2), body, (0, x))[1]

    assert least <= moved(g, x, weights[0]) <= most


def test_of_branches_the_one_that_moves_most_counts():
    a, b = jnp.ones((1024, 256)), jnp.ones((256, 1024))

    def f(flag, a, b):
        return jax.lax.cond(flag, jnp.matmul, lambda a, b: jnp.zeros((1024, 1024)), a, b)

    most = a.nbytes + b.nbytes + 1024 * 1024 * 4
    assert most <= moved(f, jnp.bool_(True), a, b) <= 1.5 * most
