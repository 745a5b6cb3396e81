"""Look-ups of rows of a parameter, against vmap(grad)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.cases import slow, some
from helpers.engines import B, agree, agree_exactly, factored, normal

from jaxdp.gradients.engine import factored_engine

# Every mode along every axis.
EVERY_MODE = [((), 0, "fill"), ((7,), 0, "clip"), ((2, 3), 0, "wrap")]
EVERY_MODE += [((), 1, "wrap"), ((7,), 1, "fill"), ((2, 3), 1, "clip")]


@pytest.mark.parametrize(
    ("shape", "axis", "mode"),
    some(itertools.product([(), (7,), (2, 3)], [0, 1], ["fill", "clip", "wrap"]), EVERY_MODE),
    ids=str,
)
def test_lookups_with_repeated_and_outside_indices(shape, axis, mode):
    table = normal(0, 6, 5)
    indices = jax.random.randint(jax.random.key(1), (B, *shape), -2, 9)
    indices = indices if mode != "wrap" else indices % 6

    def loss(q, i):
        rows = jnp.take(q, i, axis=axis, mode=mode, fill_value=0.0)
        return jnp.sum(jnp.sin(rows) * rows)

    agree(loss, table, (indices,))
    assert factored(loss, table, (indices,)) == [True]


def each(look_up):
    """Looks up indices one by one."""
    return lambda table, i: jax.vmap(lambda j: look_up(table, j))(i)


def sliced(table, i, axis):
    return jax.lax.dynamic_index_in_dim(table, i, axis)


FORMS = {
    "one by one": each(lambda table, j: table[j]),
    "one by one, take": each(lambda table, j: jnp.take(table, j, axis=0, fill_value=0)),
    "one by one, dynamic": each(lambda table, j: sliced(table, j, 0)),
    "one by one, columns": each(lambda table, j: sliced(table, j, 1)),
    "twice mapped": lambda table, i: each(each(lambda table, j: table[j]))(table, i[None]),
    "scalar": lambda table, i: table[i[0]],
    "scalar column": lambda table, i: table[:, i[0]],
    "scalar, dynamic": lambda table, i: sliced(table, i[0], 0),
    "not wrapped": lambda table, i: jax.lax.dynamic_slice(table, (i[0], i[1]), (1, 5)),
    "a number": lambda table, i: table[i[0], i[1]],
    "numbers": lambda table, i: table[i, i[::-1]],
    "numbers of a row": lambda table, i: table[i[0]][i[1]],
    "2-d": lambda table, i: table[jnp.stack([i, i + 1])],
    "columns": lambda table, i: table[:, i],
    "clip": lambda table, i: table.at[i].get(mode="clip"),
    "drop": lambda table, i: table.at[i].get(mode="fill", fill_value=0),
    "within": lambda table, i: table.at[i % 6].get(mode="promise_in_bounds"),
    "a row of two axes": lambda table, i: table.reshape(3, 2, 5)[i],
    "within two axes": lambda table, i: table.reshape(2, 3, 5)[i, i[::-1]],
    "along an axis": lambda table, i: jnp.take_along_axis(table, i[:6, None], 1, fill_value=0),
    "a number of every row": lambda table, i: jax.vmap(lambda row, j: row[j])(table, i),
    "tables of their own": lambda table, i: jax.vmap(lambda t, j: t[j])(
        table.reshape(3, 2, 5), i.reshape(3, 2)
    ),
    "in a scan": lambda table, i: jax.lax.scan(lambda c, j: (c, table[j]), 0, i)[1],
    "many in a scan": lambda table, i: jax.lax.scan(lambda c, j: (c, table[j]), 0, i[:, None])[1],
    "unsigned": lambda table, i: table[jnp.abs(i).astype(jnp.uint8)],
}

LONG = ("one by one, dynamic", "scalar column", "scalar, dynamic", "numbers of a row", "2-d")
LONG += ("within", "in a scan")


@pytest.mark.slow
@pytest.mark.parametrize("form", [slow(name) if name in LONG else name for name in FORMS])
def test_lookups_as_people_write_them(form):
    def loss(table, i):
        rows = FORMS[form](table, i)
        weights = 1 + jnp.arange(rows.size).reshape(rows.shape)
        return jnp.sum(jnp.sin(rows) * rows * weights)

    agree_exactly(loss, normal(0, 6, 5), (jax.random.randint(jax.random.key(1), (B, 6), -8, 9),))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(), (4,)])
def test_lookups_in_a_table_for_every_layer(shape):
    """The tables are the slices of a scan."""

    def loss(tables, indices):
        layer = lambda h, x: (jnp.sin(h + x[0][x[1]]), None)
        return jnp.sum(jax.lax.scan(layer, jnp.zeros((*shape, 5)), (tables, indices))[0] ** 2)

    indices = jax.random.randint(jax.random.key(1), (B, 3, *shape), -2, 6)
    agree_exactly(loss, normal(0, 3, 6, 5), (indices,))


def gathered(table, indices, mode, index_map=(0,)):
    """lax.gather of rows, without what jax.numpy does to indices first."""
    numbers = jax.lax.GatherDimensionNumbers((1,), (0,), index_map)
    return jax.lax.gather(table, indices, numbers, (1, 5), mode=mode, fill_value=0)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fill", "clip"])
@pytest.mark.parametrize("start", [2**32 + 1, -(2**32) + 1, np.uint64(2**63 + 1)])
def test_wide_indices_outside_of_the_table_stay_outside(mode, start):
    """2³² + 1 is no row, though its lower half is."""
    loss = lambda table, i: jnp.sum(jnp.sin(gathered(table, i[:, None], mode)))
    with jax.enable_x64(True):
        indices = jnp.asarray([[start, 2, 2]])
        agree_exactly(loss, normal(0, 6, 5), (indices,))


def test_a_negative_index_of_a_gather_reads_nothing():
    """jax.numpy counts from the end; lax.gather does not."""
    loss = lambda table, i: jnp.sum(jnp.sin(gathered(table, i[:, None], "fill")))
    agree_exactly(loss, normal(0, 6, 5), (jnp.array([[-1, 2, -6], [0, -7, 5]]),))


@pytest.mark.parametrize("mode", ["fill", "clip"])
def test_an_index_of_an_axis_that_is_taken_whole_may_be_outside(mode):
    loss = lambda table, i: jnp.sum(jnp.sin(gathered(table, i, mode, (0, 1))))
    agree_exactly(loss, normal(0, 6, 5), (jnp.array([[[1, 0], [1, 1], [2, -1], [3, 0]]]),))


def test_tables_of_tables():
    """Each iteration has tables of its own, one for every position."""

    def loss(tables, indices):
        read = jax.vmap(lambda table, i: table[i])
        layer = lambda h, x: (jnp.sin(h + read(*x)), None)
        return jnp.sum(jax.lax.scan(layer, jnp.zeros((3, 5)), (tables, indices))[0] ** 2)

    indices = jax.random.randint(jax.random.key(1), (B, 2, 3), 0, 4)
    agree_exactly(loss, normal(0, 2, 3, 4, 5), (indices,))


def test_a_block_of_rows_is_dense():
    loss = lambda table, i: jnp.sum(jnp.sin(jax.lax.dynamic_slice(table, (i, 0), (2, 5))))
    agree(loss, normal(0, 6, 5), (jnp.arange(B),))
    assert factored(loss, normal(0, 6, 5), (jnp.arange(B),)) == [False]


def test_an_example_adds_one_term_if_it_reads_every_part_once():
    table, i = normal(0, 3, 6, 5), jnp.arange(3)[None]
    read = lambda table, i: jnp.sum(jax.vmap(lambda t, j: t[j])(table, i))
    assert factored_engine(read, table, (i,))[1][0].one_term
    assert not factored_engine(read, table, (jnp.stack([i, i], axis=-1),))[1][0].one_term
