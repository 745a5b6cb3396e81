"""Layouts do what NumPy does to an array of places."""

import math

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdp.gradients.layout import Axis, Block, Layout, merged

SIZES = st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=3)


def places(layout):
    """The place of every number of a view."""
    found = np.full([axis.size for axis in layout.axes], layout.offset)
    for i, axis in enumerate(layout.axes):
        along = [-1 if j == i else 1 for j in range(len(layout.axes))]
        found = found + (np.arange(axis.size) * axis.stride).reshape(along)
    return found.reshape(layout.shape)


def some_factors(rng, size):
    """Sizes whose product is `size`."""
    sizes = [1] * int(rng.integers(0, 2))
    while size > 1:
        divisor = int(rng.choice([k for k in range(2, size + 1) if size % k == 0]))
        sizes.append(divisor)
        size //= divisor
    return tuple(int(k) for k in rng.permutation(sizes)) or (1,)


def relabelled(rng, array, layout):
    """One random relabelling of both; the layout is None where strides can't tell it."""
    kind = rng.choice(["transpose", "reverse", "slice", "reshape"])
    if kind == "transpose":
        order = [int(i) for i in rng.permutation(array.ndim)]
        return array.transpose(order), layout.transpose(order)
    if kind == "reverse":
        dims = [int(rng.integers(array.ndim))]
        return np.flip(array, dims), layout.reverse(dims)
    if kind == "slice":
        starts = [int(rng.integers(0, n)) for n in array.shape]
        limits = [int(rng.integers(s + 1, n + 1)) for s, n in zip(starts, array.shape, strict=True)]
        steps = [int(rng.integers(1, 3)) for _ in starts]
        cut = tuple(map(slice, starts, limits, steps))
        return array[cut], layout.slice(starts, limits, steps)
    shape = some_factors(rng, array.size)
    return array.reshape(shape), layout.reshape(shape)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SIZES, st.integers(0, 9999), st.integers(1, 4))
def test_views_lie_where_numpy_has_them(shape, seed, count):
    rng = np.random.default_rng(seed)
    leaf = np.arange(math.prod(shape)).reshape(shape)
    array, layout = leaf, Layout.whole(shape)
    for _ in range(count):
        new, found = relabelled(rng, array, layout)
        if found is not None:
            array, layout = new, found
    np.testing.assert_array_equal(places(layout), array)
    blocks = layout.blocks(shape)
    if blocks is None:
        return
    expected = np.zeros(leaf.size)
    expected[array.ravel()] = 1 + np.arange(array.size)
    values = 1.0 + np.arange(array.size).reshape(array.shape)
    got = layout.restore(jnp.asarray(values)[None], 1, tuple(shape))[0]
    np.testing.assert_array_equal(got, expected.reshape(shape))
    taken = np.zeros(shape, bool)
    taken[tuple(slice(b.start, b.start + (b.size - 1) * b.step + 1, b.step) for b in blocks)] = True
    np.testing.assert_array_equal(taken, (expected > 0).reshape(shape))


def test_axes_that_are_joined_are_made_of_several():
    turned = Layout.whole((4, 6)).transpose([1, 0])
    assert turned.reshape((24,)).dims == ((Axis(6, 1), Axis(4, 6)),)
    assert turned.reshape((24,)).slice([0], [24], [1]) is not None
    assert turned.reshape((24,)).slice([0], [12], [1]) is None
    assert turned.reshape((24,)).reshape((6, 4)) == turned
    assert turned.reshape((3, 8)).dims == ((Axis(3, 2),), (Axis(2, 1), Axis(4, 6)))
    assert turned.reshape((4, 6)) is None
    assert Layout.whole((4, 6)).reshape((24,)).dims == ((Axis(24, 1),),)


def test_numbers_that_are_repeated_are_no_blocks():
    repeated = Layout.whole((3,)).broadcast((2, 3), (1,))
    assert repeated.repeats
    assert repeated.blocks((3,)) is None
    assert not Layout.whole((3,)).broadcast((1, 3), (1,)).repeats


def test_axes_that_follow_each_other_are_merged():
    assert merged([Axis(2, 12), Axis(3, 4), Axis(1, 0), Axis(4, 1)]) == (Axis(24, 1),)
    assert merged([Axis(3, 1), Axis(4, 3)]) == (Axis(3, 1), Axis(4, 3))


def test_whether_blocks_meet():
    assert Block(0, 4, 1).meets(Block(3, 2, 1))
    assert not Block(0, 3, 1).meets(Block(3, 2, 1))
    assert not Block(0, 4, 2).meets(Block(1, 4, 2))
    assert Block(0, 4, 2).meets(Block(2, 4, 2))
