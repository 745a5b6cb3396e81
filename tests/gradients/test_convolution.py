"""Convolutions with a parameter as their kernel, against vmap(grad)."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from helpers.cases import slow
from helpers.engines import B, agree, agree_exactly, factored, normal

LAYOUT_1D = ("NWC", "WIO", "NWC")


@pytest.mark.parametrize(
    ("space", "options"),
    [
        slow((9,), dict(window_strides=(1,), padding="SAME")),
        slow((9,), dict(window_strides=(2,), padding=[(3, -1)])),
        ((6, 7), dict(window_strides=(1, 1), padding="SAME")),
        slow((6, 7), dict(window_strides=(2, 3), padding="VALID")),
        ((6, 7), dict(window_strides=(2, 1), padding=[(0, 2), (1, 1)], rhs_dilation=(2, 1))),
        ((6, 7), dict(window_strides=(1, 1), padding=[(1, 0), (2, 2)], lhs_dilation=(2, 3))),
        ((6, 7), dict(window_strides=(1, 1), padding="SAME", feature_group_count=2)),
        ((6, 7), dict(window_strides=(1, 2), padding="SAME", feature_group_count=4)),
        slow((5, 4, 3), dict(window_strides=(1, 2, 1), padding="SAME")),
    ],
)
@pytest.mark.parametrize(("channels_last", "features"), [slow(True, 4), (False, 20)])
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


SAME = dict(window_strides=(1,), padding="SAME", dimension_numbers=LAYOUT_1D)


def conv(x, w, **options):
    return jax.lax.conv_general_dilated(x, w, **SAME | options)


def own_kernels(w, x):
    """The kernels are the slices of a scan, which itself is in a loop over halves of them."""
    layer = lambda h, k: (jnp.sin(conv(h, k)), None)
    half = lambda h, ks: (jax.lax.scan(layer, h, ks)[0], None)
    return jax.lax.scan(half, x, w)[0]


def shared_in_own(w, x):
    """A loop over kernels, each of which a loop uses several times."""

    def layer(h, k):
        return jax.lax.scan(lambda h, scale: (jnp.sin(scale * conv(h, k)), None), h, SCALES)

    return jax.lax.scan(lambda h, k: (layer(h, k)[0], None), x, w)[0]


def own_in_shared(w, x):
    """The same loop over kernels, several times."""
    layers = lambda h, s: jax.lax.scan(lambda h, k: (jnp.sin(s * conv(h, k)), None), h, w)
    return jax.lax.scan(lambda h, scale: (layers(h, scale)[0], None), x, SCALES)[0]


SCALES = jnp.array([1.0, 0.5, 2.0])

FORMS = {
    "shared in a loop": ((3, 4, 4), lambda w, x: jax.lax.map(lambda y: conv(y[None], w), x)),
    "own kernels": ((2, 2, 3, 4, 4), own_kernels),
    "own kernels, grouped": (
        (3, 2, 2, 4),
        lambda w, x: jax.lax.scan(
            lambda h, k: (jnp.sin(conv(h, k, feature_group_count=2)), None), x, w
        )[0],
    ),
    "shared in own": ((2, 3, 4, 4), shared_in_own),
    "own in shared": ((2, 3, 4, 4), own_in_shared),
    "own kernels, remat": (
        (2, 3, 4, 4),
        lambda w, x: jax.lax.scan(jax.checkpoint(lambda h, k: (jnp.sin(conv(h, k)), None)), x, w)[
            0
        ],
    ),
    "mapped over positions": (
        (3, 4, 5),
        lambda w, x: jax.vmap(lambda y: conv(y, w), 2)(x[:, :, None] * SCALES[:, None]),
    ),
    "mapped over kernels": (
        (2, 3, 4, 5),
        lambda w, x: jax.vmap(lambda k, y: conv(y[None], k))(w, x),
    ),
    "kernels of the same input": ((2, 3, 4, 5), lambda w, x: jax.vmap(lambda k: conv(x, k))(w)),
    "transposed": ((3, 4, 5), lambda w, x: jax.lax.conv_transpose(x, w, (2,), "SAME")),
    "transposed, mirrored": (
        (3, 5, 4),
        lambda w, x: jax.lax.conv_transpose(x, w, (2,), "VALID", transpose_kernel=True),
    ),
    "dilated": ((3, 4, 5), lambda w, x: conv(x, w, rhs_dilation=(2,), window_strides=(2,))),
    "depthwise": ((3, 1, 8), lambda w, x: conv(x, w, feature_group_count=4)),
    "first channels": (
        (5, 4, 3),
        lambda w, x: conv(x.swapaxes(1, 2), w, dimension_numbers=("NCW", "OIW", "NCW")),
    ),
    "1 × 1": ((1, 4, 5), lambda w, x: conv(x, w)),
    "longer than the input": ((9, 4, 5), lambda w, x: conv(x, w)),
}

LONG = ("own kernels", "own kernels, grouped", "own kernels, remat", "shared in own", "dilated")
LONG += ("mapped over positions", "depthwise", "first channels", "1 × 1", "transposed")
LONG += ("longer than the input",)


@pytest.mark.slow
@pytest.mark.parametrize("form", [slow(name) if name in LONG else name for name in FORMS])
def test_convolutions_as_people_write_them(form):
    shape, convolve = FORMS[form]

    def loss(q, x):
        y = convolve(q["w"], x * q["s"])
        return jnp.sum(jnp.sin(y) * (1 + jnp.arange(y.size).reshape(y.shape) / y.size))

    params = {"w": normal(0, *shape) / 2, "s": normal(1, 1, 1, 1)}
    agree_exactly(loss, params, (normal(2, B, 2, 5, 4),), dense=("s",))


class Layers(nn.Module):
    """Convolutions of Flax; `layer` names one, which has an input with batch axes of its own."""

    layer: str

    @nn.compact
    def __call__(self, x):
        return {
            "1-d": nn.Conv(3, (3,)),
            "3-d": nn.Conv(3, (2, 3, 2), strides=(1, 2, 1)),
            "causal": nn.Conv(3, (3,), padding="CAUSAL"),
            "circular": nn.Conv(3, (3, 3), padding="CIRCULAR"),
            "depthwise": nn.Conv(8, (3, 3), feature_group_count=4),
            "local": nn.ConvLocal(3, (2,)),
            "transposed": nn.ConvTranspose(3, (3, 2), strides=(2, 3)),
            "transposed, mirrored": nn.ConvTranspose(3, (3,), (2,), transpose_kernel=True),
            "transposed, circular": nn.ConvTranspose(3, (4,), (2,), padding="CIRCULAR"),
        }[self.layer](x)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layer",
    [slow("1-d"), slow("circular"), "local", slow("transposed"), slow("transposed, mirrored")]
    + [slow(name) for name in ("3-d", "causal", "depthwise", "transposed, circular")],
)
def test_layers_of_flax(layer):
    model, x = Layers(layer), normal(2, B, 2, 4, 5, 3, 4)
    variables = model.init(jax.random.key(0), x[0])
    loss = lambda params, x: jnp.sum(jnp.sin(model.apply(params, x)) ** 2)
    agree_exactly(loss, variables, (x,), dense=("bias",))


def test_several_batch_groups_are_dense():
    loss = lambda w, x: jnp.sum(jnp.sin(conv(x, w, batch_group_count=2)))
    params, batch = normal(0, 3, 4, 6), (normal(2, B, 2, 5, 4),)
    agree(loss, params, batch)
    assert factored(loss, params, batch) == [False]
