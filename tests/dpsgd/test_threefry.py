"""Threefry-4x32-20 gives the bits that were published."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.integer_noise import threefry

from jaxdp.dpsgd.threefry import threefry_4x32

# Random123 1.14, tests/kat_vectors: key, counter, block.
PUBLISHED = [
    ("00000000 " * 4, "00000000 " * 4, "9c6ca96a e17eae66 fc10ecd4 5256a7d8"),
    ("ffffffff " * 4, "ffffffff " * 4, "2a881696 57012287 f6c7446e a16a6732"),
    (
        "a4093822 299f31d0 082efa98 ec4e6c89",
        "243f6a88 85a308d3 13198a2e 03707344",
        "59cd1dbb b8879579 86b5d00c ac8b6d84",
    ),
]
COMPILED = jax.jit(threefry_4x32)
numbers = lambda text: [int(word, 16) for word in text.split()]


def block_of(key, counter):
    as_words = lambda values: [jnp.asarray(np.asarray(v, np.uint32)) for v in values]
    return np.stack(COMPILED(as_words(key), as_words(counter)))


@pytest.mark.parametrize(("key", "counter", "block"), PUBLISHED)
def test_published_vectors(key, counter, block):
    key, counter, block = map(numbers, (key, counter, block))
    assert threefry(key, counter) == block
    assert block_of(key, counter).tolist() == block


def test_equals_plain_integers_and_one_by_one_equals_all_at_once():
    words = np.random.default_rng(0).integers(0, 2**32, (4, 4, 500), dtype=np.uint32)
    for i, (key, counters) in enumerate(zip(words[:, :, 0], words, strict=True)):
        blocks = block_of(key, counters)
        assert blocks.dtype == np.uint32
        assert blocks.T.tolist() == [threefry(key.tolist(), c) for c in counters.T.tolist()]
        assert block_of(key, counters[:, i]).tolist() == blocks[:, i].tolist()


def test_mapped_and_compiled_the_bits_stay():
    words = jnp.asarray(np.random.default_rng(1).integers(0, 2**32, (2, 4, 50), dtype=np.uint32))
    key, counters = words[0, :, 0], words[1]
    want = jnp.stack(threefry_4x32(list(key), list(counters)))
    one = lambda counter: jnp.stack(threefry_4x32(list(key), list(counter)))
    np.testing.assert_array_equal(jax.jit(jax.vmap(one, 1, 1))(counters), want)


def test_every_bit_of_key_and_counter_matters():
    """Turning one bit of 256 turns about half of the block's, and no two blocks are the same."""
    turned = np.zeros((257, 8), np.uint32)
    for bit in range(256):
        turned[bit + 1, bit // 32] = 1 << (bit % 32)
    blocks = block_of(turned.T[:4], turned.T[4:]).T.copy()
    assert len(np.unique(blocks, axis=0)) == 257
    bits = np.unpackbits((blocks[1:] ^ blocks[0]).view(np.uint8), axis=1).sum(axis=1)
    # 128 fair coins: mean 64, std 5.66. Beyond ±40 (7 std) in one of 256: below 1e-9.
    assert np.abs(bits.astype(int) - 64).max() <= 40
