"""The noise again, in plain Python integers: a second form of threefry and of the sampler."""

import jaxdp.dpsgd._noise_tables as noise_tables

_PAIRS = ((10, 26), (11, 21), (13, 27), (23, 5), (6, 20), (17, 11), (25, 10), (18, 20))
_MASK = 2**32 - 1


def threefry(key, counter):
    """Threefry-4x32-20 as Salmon et al. 2011 write it: lists of four whole numbers."""
    last = 0x1BD11BDA
    for word in key:
        last ^= word
    keys = [*key, last]
    x = list(counter)
    for turn in range(21):  # a key before every four rounds, and after the last
        if turn % 4 == 0:
            x = [(x[i] + keys[(turn // 4 + i) % 5]) & _MASK for i in range(4)]
            x[3] = (x[3] + turn // 4) & _MASK
        if turn == 20:
            return x
        right, left = _PAIRS[turn % 8]
        a, b, c, d = x
        a, c = (a + b) & _MASK, (c + d) & _MASK
        # Words 1 and 3 change places after every round.
        x = [a, _rotated(d, left) ^ c, c, _rotated(b, right) ^ a]
    raise AssertionError


def draw_of(block, scale):
    """The rounded Gaussian of 128 bits, given as four words."""
    table = noise_tables.tables(scale)
    bits = (block[0] << 32) | block[1]
    slot = bits >> (64 - noise_tables.SLOT_BITS[scale])
    choice = (block[2] << 32) | block[3]
    threshold = (int(table.high[slot]) << 32) | int(table.low[slot])
    cell = slot if choice < threshold else int(table.alias[slot])
    # The least bits of each word come first; what does not fit into one is taken from the other.
    words, left = [block[1], block[0]], [32, 32 - noise_tables.SLOT_BITS[scale]]
    position = 0
    for uniform in noise_tables.KERNELS[scale]:
        i = 0 if left[0] >= uniform.bits else 1
        position += words[i] % 2**uniform.bits * uniform.step
        words[i] >>= uniform.bits
        left[i] -= uniform.bits
    assert min(left) >= 0
    middle = (table.cells - 1) // 2
    return (cell - middle) * 2 ** (scale - 6) + position - noise_tables.kernel_middle(scale)


def draw(key, step, leaf, element, scale):
    """The noise of one element of a leaf at a step. `key`: four words."""
    counter = [element & _MASK, element >> 32, step, leaf]
    return draw_of(threefry(key, counter), scale)


def _rotated(word, by):
    return ((word << by) | (word >> (32 - by))) & _MASK
