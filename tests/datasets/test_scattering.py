"""Scattering coefficients, by their properties and against the definition at full resolution."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.cases import slow

import jaxdp
from jaxdp.datasets.scattering import SIGMA, VERSION, make_filters

PATHS = 81
FIRST = slice(1, 17)  # the coefficients of order 1, after the only one of order 0


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def smooth(size, seed=0):
    """A random image `[size, size, 1]` without frequencies above a third of the highest."""
    spectrum = np.fft.fft2(np.random.default_rng(seed).normal(size=(size, size)))
    far = np.abs(np.fft.fftfreq(size))
    spectrum *= np.maximum(far[:, None], far) < 1 / 6
    return np.fft.ifft2(spectrum).real.astype(np.float32)[..., None]


def in_the_middle(image, size):
    """The image amid zeros, so that the border adds nothing."""
    edge = (size - image.shape[0]) // 2
    return np.pad(image, ((edge, edge), (edge, edge), (0, 0)))


def length(x):
    return float(np.sqrt(np.sum(np.square(x, dtype=np.float64))))


@pytest.mark.parametrize("shape", [slow((28, 28, 1)), slow((32, 32, 3)), (5, 2, 12, 20, 2)])
def test_the_shape(shape):
    *rest, height, width, colours = shape
    features = jaxdp.scattering(noise(*shape))
    assert features.shape == (*rest, height // 4, width // 4, PATHS * colours)
    assert features.dtype == jnp.float32


def test_a_constant_image_has_nothing_but_its_constant():
    features = np.asarray(jaxdp.scattering(np.full((16, 16, 1), 3.0, np.float32)))
    np.testing.assert_allclose(features[..., 0], 3, rtol=1e-6)
    np.testing.assert_allclose(features[..., 1:], 0, atol=1e-6)


def test_bytes_are_divided_by_255():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 1)).astype(np.uint8)
    np.testing.assert_allclose(
        jaxdp.scattering(image), jaxdp.scattering(image.astype(np.float32) / 255), atol=1e-6
    )


def test_a_longer_image_has_longer_features():
    image = noise(16, 16, 1)
    np.testing.assert_allclose(
        jaxdp.scattering(8 * image), 8 * np.asarray(jaxdp.scattering(image)), rtol=1e-6
    )


def test_each_image_and_each_colour_stands_alone():
    images = noise(6, 16, 16, 3)
    together = np.asarray(jaxdp.scattering(images))
    for i in range(6):
        np.testing.assert_allclose(together[i], jaxdp.scattering(images[i]), atol=1e-6)
    for colour in range(3):
        alone = jaxdp.scattering(images[..., colour : colour + 1])
        part = together[..., PATHS * colour : PATHS * (colour + 1)]
        np.testing.assert_allclose(part, alone, atol=1e-6)
    others = np.concatenate([images[:1], noise(5, 16, 16, 3, seed=1)])
    np.testing.assert_array_equal(together[0], np.asarray(jaxdp.scattering(others))[0])


@pytest.mark.parametrize("seed", range(3))
def test_a_move_by_a_pixel_changes_little(seed):
    """The pixels change by nearly as much as their deviation; the features by far less."""
    image = in_the_middle(np.clip(noise(16, 16, 1, seed=seed), -1, 1) + 1, 32)
    moved = np.roll(image, 1, axis=1)
    change = lambda f: length(np.asarray(f(image)) - np.asarray(f(moved))) / length(f(image))
    assert change(lambda x: x) > 0.5
    assert change(jaxdp.scattering) < 0.2


@pytest.mark.parametrize("seed", range(3))
def test_energy_is_not_gained(seed):
    image = in_the_middle(smooth(24, seed), 48)
    features = np.asarray(jaxdp.scattering(image))
    assert 0.2 * length(image) < 4 * length(features) <= length(image)  # 4 pixels apart each way


@pytest.mark.parametrize(("J", "L"), [(1, 4), (2, 8), (3, 6)])
def test_filters_have_mean_zero_and_gain_no_energy(J, L):
    size = 8 * 2**J
    filters = make_filters(size, size, J, L)
    wavelets = np.concatenate([filters.wavelets[0, k] for k in range(J)])
    assert np.max(np.abs(wavelets[:, 0, 0])) < 1e-13
    mirrored = np.roll(wavelets[:, ::-1, ::-1], 1, (1, 2))
    rows = filters.averages[0][0]
    np.testing.assert_allclose(rows.sum(1), 1, rtol=1e-12)
    average = np.abs(np.fft.fft(rows[0]))
    total = np.outer(average, average) ** 2 + 0.5 * (wavelets**2 + mirrored**2).sum(0)
    assert total.max() <= 1 + 0.3 * (L != 8)
    assert total.max() > 0.9


def test_groups_are_normalised_as_flax_does():
    """Order 0, each scale of order 1, and of order 2 each first direction, in all colours."""
    raw = np.asarray(jaxdp.scattering(images := noise(3, 16, 16, 2))).reshape(3, 4, 4, 2, PATHS)
    found = np.asarray(jaxdp.scattering(images, normalised=True)).reshape(raw.shape)
    first = [raw[..., start:stop].reshape(3, -1).var(1) for start, stop in ((1, 9), (9, 17))]
    for start, stop in ((0, 1), (1, 9), (9, 17), *((17 + 8 * i, 25 + 8 * i) for i in range(8))):
        for image in range(3):
            floor = 0.02 * (first[0][image] + first[1][image]) / 2
            layer = nn.GroupNorm(1, epsilon=floor, use_bias=False, use_scale=False)
            group = raw[image : image + 1, ..., start:stop].reshape(1, 4, 4, -1)
            want = np.asarray(layer.apply({}, group)).reshape(raw[image, ..., start:stop].shape)
            np.testing.assert_allclose(found[image, ..., start:stop], want, atol=1e-3)


@pytest.mark.slow
def test_normalised_features_do_not_depend_on_contrast():
    image = noise(16, 16, 2)
    make = lambda image: np.asarray(jaxdp.scattering(image, normalised=True))
    np.testing.assert_allclose(make(0.05 * image + 0.3), make(image), atol=1e-2)
    assert np.abs(make(np.full((16, 16, 1), 0.7, np.float32))).max() < 1e-2


@pytest.mark.parametrize(("width", "columns"), [(16, 2), (28, 4)])
@pytest.mark.parametrize("normalised", [False, True])
def test_a_mirrored_image_has_the_same_features(width, columns, normalised):
    image = noise(16, width, 2)
    make = lambda image: np.asarray(jaxdp.scattering(image, normalised=normalised, mirrored=True))
    assert make(image).shape == (4, columns, 2 * PATHS)
    np.testing.assert_allclose(make(image[:, ::-1]), make(image), atol=1e-5)
    one, other = (
        np.asarray(jaxdp.scattering(side, normalised=normalised))
        for side in (image, image[:, ::-1])
    )
    whole = (one + other) / 2
    np.testing.assert_allclose(make(image), whole[:, :columns], atol=1e-6)
    assert np.max(np.abs(make(image) - one[:, :columns])) > 0.01


def test_waves_are_found_in_their_direction():
    """Waves along the columns are found by wavelets along these, and those along rows likewise."""
    wave = np.cos(3 * np.pi / 4 * np.arange(32, dtype=np.float32))
    found = []
    for image in (np.tile(wave, (32, 1)), np.tile(wave[:, None], (1, 32))):
        features = np.asarray(jaxdp.scattering(image[..., None])).mean((0, 1))
        found.append(int(np.argmax(features[FIRST])))
    assert abs(found[0] - found[1]) == 4  # a quarter turn, of 8 directions in a half turn
    assert max(found) < 8  # at the finest scale


def test_float32_is_close_to_float64():
    image = noise(16, 16, 2)
    with jax.enable_x64(True):
        exact = jaxdp.scattering(image.astype(np.float64))
        assert exact.dtype == jnp.float64
        exact = np.asarray(exact)
    np.testing.assert_allclose(jaxdp.scattering(image), exact, rtol=1e-4, atol=2e-6)


def test_it_is_near_the_definition():
    """| | x * ψ | * ψ' | * φ at full resolution; taking fewer pixels on the way changes little."""
    image = noise(32, 32, 1, seed=4)[..., 0].astype(np.float64)
    x = np.pad(image, 4, mode="reflect")
    wavelets = [make_filters(40, 40, 2, 8).wavelets[0, k] for k in range(2)]
    far = (np.arange(40) + 20) % 40 - 20
    average = np.exp(-(far**2) / (2 * (2 * SIGMA) ** 2))
    low = np.fft.fft2(np.outer(average, average) / average.sum() ** 2)
    filtered = lambda x, by: np.fft.ifft2(np.fft.fft2(x) * by)
    averaged = lambda x: filtered(x, low).real[..., 4:-4:4, 4:-4:4]
    first = [np.abs(filtered(x, w)) for w in wavelets]
    second = np.abs(filtered(first[0][:, None], wavelets[1])).reshape(64, 40, 40)
    want = np.concatenate([averaged(x)[None], *map(averaged, first), averaged(second)])
    got = np.moveaxis(np.asarray(jaxdp.scattering(image[..., None])), -1, 0)
    for paths, most in ((slice(0, 9), 1e-5), (slice(9, 17), 0.03), (slice(17, 81), 0.03)):
        assert length(got[paths] - want[paths]) / length(want[paths]) < most


@pytest.mark.parametrize(
    ("images", "settings", "message"),
    [
        (np.zeros((30, 28, 1)), {}, r"images has shape \(30, 28, 1\): .* multiples of 2\^J = 4"),
        (np.zeros((4, 8, 1)), {}, "longer than that"),
        (np.zeros((28, 28)), {}, r"give \[..., height, width, colours\]"),
        (np.zeros((8, 8, 1), complex), {}, "images has dtype complex64: give real numbers"),
        (
            np.zeros((8, 8, 1)),
            {"J": 0},
            "J is 0: give a whole number of at least 1",
        ),
        (np.zeros((8, 8, 1)), {"L": 0}, "L is 0"),
        (np.zeros((8, 8, 1)), {"J": 2.0}, "J is 2.0"),
    ],
)
def test_errors(images, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        jaxdp.scattering(images, **settings)
    assert "\n" not in str(error.value)


def test_the_numbers_are_those_of_version_1():
    """Models are for the features that they were trained on: others need another VERSION."""
    y, x = np.mgrid[:12, :12].astype(np.float32)
    image = np.sin(0.7 * x + 0.1 * x * y)[..., None]
    raw = np.asarray(jaxdp.scattering(image))[1, 1]
    normalised = np.asarray(jaxdp.scattering(image, normalised=True))[1, 1]
    assert VERSION == 1
    np.testing.assert_allclose(
        raw[[0, 3, 12, 40]], [-0.153374, 0.0715385, 0.0138765, 0.0066433], rtol=1e-4
    )
    np.testing.assert_allclose(
        normalised[[0, 3, 12, 40]], [-1.22345, -0.360164, -1.08432, -0.0208998], rtol=1e-3
    )
