"""Convolutions with a parameter as their kernel, against vmap(grad)."""

import jax
import jax.numpy as jnp
import pytest
from helpers.engines import B, agree, factored, normal

LAYOUT_1D = ("NWC", "WIO", "NWC")


@pytest.mark.parametrize(
    ("space", "options"),
    [
        ((9,), dict(window_strides=(1,), padding="SAME")),
        ((9,), dict(window_strides=(2,), padding=[(3, -1)])),
        ((6, 7), dict(window_strides=(1, 1), padding="SAME")),
        ((6, 7), dict(window_strides=(2, 3), padding="VALID")),
        ((6, 7), dict(window_strides=(2, 1), padding=[(0, 2), (1, 1)], rhs_dilation=(2, 1))),
        ((6, 7), dict(window_strides=(1, 1), padding=[(1, 0), (2, 2)], lhs_dilation=(2, 3))),
        ((6, 7), dict(window_strides=(1, 1), padding="SAME", feature_group_count=2)),
        ((6, 7), dict(window_strides=(1, 2), padding="SAME", feature_group_count=4)),
        ((5, 4, 3), dict(window_strides=(1, 2, 1), padding="SAME")),
    ],
)
@pytest.mark.parametrize(("channels_last", "features"), [(True, 4), (False, 20)])
def test_convolutions(space, options, channels_last, features):
    n = len(space)
    groups = options.get("feature_group_count", 1)
    letters = "DHW"[-n:]
    if channels_last:
        layout = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
        x, kernel = (2, *space, features), (*[3] * n, features // groups, 8)
    else:
        layout = (f"NC{letters}", f"OI{letters}", f"NC{letters}")
        x, kernel = (2, features, *space), (8, features // groups, *[3] * n)

    def loss(q, x):
        y = jax.lax.conv_general_dilated(x * q["s"], q["w"], dimension_numbers=layout, **options)
        return jnp.sum(jnp.sin(y)) / y.size

    batch = (normal(1, B, *x),)
    params = {"s": normal(3, *x), "w": normal(2, *kernel)}  # s: the input's gradient is right too
    agree(loss, params, batch)
    assert factored(loss, params, batch) == [False, True]


def test_patches_are_made_for_a_few_rows_at_a_time(monkeypatch):
    monkeypatch.setattr("jaxdp.gradients.convolution.PATCH_NUMBERS", 2 * 9 * 3 * 4)

    def loss(w, x):
        y = jax.lax.conv_general_dilated(x[None], w, (1,), "SAME", dimension_numbers=LAYOUT_1D)
        return jnp.sum(jnp.sin(y))

    agree(loss, normal(2, 3, 4, 6), (normal(1, B, 9, 4),))
