"""Axes are joined and split again without changing which number is which."""

import jax.numpy as jnp
import numpy as np

from jaxdp.gradients.axes import folded, grouped, ungrouped

ARRAY = jnp.arange(2 * 3 * 4 * 5 * 6).reshape(2, 3, 4, 5, 6)


def test_groups_of_axes_are_joined_in_their_order():
    joined = grouped(ARRAY, [(2,), (3, 0), (1,)])
    assert joined.shape == (2, 5, 18, 4)
    expected = np.einsum("bacde->bdeac", np.asarray(ARRAY)).reshape(2, 5, 6 * 3, 4)
    np.testing.assert_array_equal(joined, expected)


def test_an_empty_group_is_an_axis_of_one():
    assert grouped(ARRAY, [(), (0, 1, 2, 3)]).shape == (2, 1, 360)


def test_splitting_undoes_joining():
    groups = [(2,), (3, 0), (1,)]
    flat = [axis for group in groups for axis in group]
    sizes = [ARRAY.shape[1 + axis] for axis in flat]
    order = [flat.index(axis) for axis in range(4)]
    np.testing.assert_array_equal(ungrouped(grouped(ARRAY, groups), 1, sizes, order), ARRAY)


def test_axes_are_folded_in_front_of_a_later_one():
    np.testing.assert_array_equal(
        folded(ARRAY, [1], 3), np.moveaxis(np.asarray(ARRAY), 1, 2).reshape(2, 4, 15, 6)
    )
    assert folded(ARRAY, [], 3) is ARRAY
