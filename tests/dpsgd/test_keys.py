"""Secrets: full width, one stream for each use, and none shared (privacy rule 10)."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.dense import from_dense
from helpers.integer_noise import threefry
from helpers.problems import flat64
from helpers.releases import FALSE_ALARM, PARAMS, make_plan, releases
from scipy.stats import norm

import jaxdp
from jaxdp.dpsgd import jax_key, keys

PARAMS_OF_TWO = jax.tree.map(lambda p: jnp.stack([p, p]), PARAMS)


def test_secret_keys_use_their_full_width():
    drawn = np.stack([np.asarray(jax.random.key_data(jaxdp.secret_key())) for _ in range(64)])
    bits = np.unpackbits(drawn.view(np.uint8), axis=1)
    assert bits.shape[1] == 128
    # Each bit of 64 keys is both 0 and 1 somewhere: false alarm 128 * 2 * 2^-64.
    assert bits.any(axis=0).all()
    assert (1 - bits).any(axis=0).all()
    # And no half follows from another: false alarm below 2^-50.
    assert len(np.unique(drawn.view(np.uint64))) == 128


@pytest.mark.parametrize("key", [jax.random.key(0), jaxdp.secret_key()], ids=["seed", "secret"])
def test_noise_and_other_streams_of_one_key_are_apart(key):
    state = jaxdp.privatize(make_plan(), key=key).init(PARAMS)
    names = ("noise", "init", "augmentation", "sampling", "units")
    bits = lambda key: jax.random.key_data(key).tobytes()
    noise_keys = {name: bits(keys.derived(key, name)) for name in names}
    assert bits(state.privatize_key) == noise_keys["noise"]
    philox = [keys.philox_key(key, name).tobytes() for name in names]
    jax_keys = [bits(keys.jax_key(key, name, step)) for name in names for step in range(3)]
    every = [bits(key), *noise_keys.values(), *philox, *jax_keys]
    # No half of a key is a half of another. So a user who also initialises a model from the given
    # key does not publish the noise by it.
    halves = [whole[i : i + 8] for whole in every for i in range(0, len(whole), 8)]
    assert len(set(halves)) == len(halves)


def test_a_step_has_a_jax_key_of_its_own_also_when_traced():
    key = jaxdp.secret_key()
    draw = lambda step: jax.random.key_data(jax_key(key, "dropout", step))
    each = np.stack([draw(step) for step in range(100)])
    assert len(np.unique(each.view(np.uint64))) == 100
    np.testing.assert_array_equal(jax.lax.map(draw, jnp.arange(100)), each)
    np.testing.assert_array_equal(jax.vmap(draw)(jnp.arange(100)), each)
    assert str(jax.random.key_impl(jax_key(key, "dropout"))) == "threefry2x32"
    words, tag = jax.random.key_data(key).tolist(), tag_of("jax dropout")
    assert each[7].tolist() == threefry(words, [*tag, 7, 4])[:2]


def test_sampling_uses_all_bits_of_a_key():
    words = jax.random.key_data(jaxdp.secret_key())
    drawn = set()
    for i in range(128):
        flipped = words.at[i // 32].set(words[i // 32] ^ jnp.uint32(1 << i % 32))
        key = jax.random.wrap_key_data(flipped, impl="rbg")
        drawn.add(tuple(next(make_plan().batches(key=key))[0].tolist()))
    assert len(drawn) == 128


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_a_privatizer_tells_the_width_of_its_key(impl):
    key = jax.random.key(0, impl=impl)
    bits = {"threefry2x32": 64, "rbg": 128}[impl]
    assert jaxdp.privatize(make_plan(), key=key).key_bits == bits
    assert f"key_bits={bits}" in repr(jaxdp.privatize(make_plan(), key=key))
    traced = []
    jax.jit(lambda key: traced.append(jaxdp.privatize(make_plan(), key=key).key_bits))(key)
    assert traced == [bits]
    assert jaxdp.privatize(make_plan()).key_bits == 128


def test_runs_without_a_seed_share_no_noise_and_seeded_runs_repeat():
    tx = jaxdp.privatize(make_plan())
    first, second = (jax.random.key_data(tx.init(PARAMS).privatize_key) for _ in range(2))
    assert not np.array_equal(first, second)
    runs = [releases(make_plan(), jax.random.key(7), 2) for _ in range(2)]
    np.testing.assert_array_equal(flat64(runs[0]), flat64(runs[1]))


def test_init_refuses_to_make_its_secret_a_constant_of_jit_or_vmap():
    tx = jaxdp.privatize(make_plan())
    for traced in (lambda: jax.jit(tx.init)(PARAMS), lambda: jax.vmap(tx.init)(PARAMS_OF_TWO)):
        with pytest.raises(ValueError, match="Call init outside"):
            traced()


def test_init_shares_no_key_between_vmapped_members():
    given = jaxdp.privatize(make_plan(), key=jax.random.key(0))
    drawn = jaxdp.privatize(make_plan())
    shared = [
        lambda: jax.vmap(given.init)(PARAMS_OF_TWO),
        lambda: jax.vmap(jax.jit(given.init))(PARAMS_OF_TWO),
        lambda: jax.vmap(lambda _: given.init(PARAMS))(jnp.arange(2)),
        lambda: jax.vmap(lambda _: drawn.init(PARAMS))(jnp.arange(2)),
        lambda: jax.jit(lambda: drawn.init(PARAMS))(),
    ]
    for attempt in shared:
        with pytest.raises(ValueError, match=r"Call init outside|made outside"):
            attempt()
    own = jax.vmap(lambda key, p: jaxdp.privatize(make_plan(), key=key).init(p))(
        jax.random.split(jax.random.key(1), 2), PARAMS_OF_TWO
    )
    assert not np.array_equal(*jax.random.key_data(own.privatize_key))
    jax.jit(given.init)(PARAMS)  # one run, whose key is given


def test_vmapped_members_never_share_noise():
    plan = make_plan()
    tx = jaxdp.privatize(plan)
    one = tx.init(PARAMS)
    grads = lambda p: from_dense(jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), p))
    shared = jax.vmap(jax.jit(lambda p, s: tx.update(grads(p), s, p)[0]), (0, None))
    with pytest.raises(ValueError, match="share their noise"):
        shared(PARAMS_OF_TWO, one)
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), one, tx.init(PARAMS))
    own = jax.vmap(jax.jit(lambda p, s: tx.update(grads(p), s, p)[0]))
    a, b = (flat64(jax.tree.map(lambda m: m[i], own(PARAMS_OF_TWO, states))) for i in range(2))
    assert abs(np.corrcoef(a, b)[0, 1]) <= norm.isf(FALSE_ALARM / 2) / np.sqrt(a.size)


def test_noise_keys_have_128_bits_whatever_key_is_given():
    given = [jax.random.key(0), jax.random.key(0, impl="rbg"), jax.random.PRNGKey(0)]
    state = lambda key: jaxdp.privatize(make_plan(), key=key).init(PARAMS)
    data = [jax.random.key_data(state(key).privatize_key) for key in [None, *given]]
    for words in data:
        assert words.shape == (4,)
        assert words.dtype == jnp.uint32
    np.testing.assert_array_equal(data[1], data[3])  # an old-style key is the same key
    assert not np.array_equal(data[1], data[2])
    assert all(words.all() for words in data)  # no word is left as padding


def tag_of(name):
    return np.frombuffer(hashlib.sha256(f"jaxdp {name}".encode()).digest()[:8], np.uint32).tolist()


def test_derived_keys_are_hashes_by_plain_integers_also_when_traced():
    for key in (jax.random.key(3), jax.random.key(3, impl="rbg"), jaxdp.secret_key()):
        words = jax.random.key_data(key).tolist()
        for step in (0, 5):
            want = threefry([*words, 0, 0][:4], [*tag_of("noise"), step, len(words)])
            derive = lambda key, step: jax.random.key_data(keys.derived(key, "noise", step))
            assert derive(key, step).tolist() == want
            assert jax.jit(derive)(key, step).tolist() == want


def test_what_is_no_key_is_named():
    with pytest.raises(TypeError, match="key is 3, not a JAX key"):
        keys.derived(3, "noise")
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        keys.derived(jax.random.split(jax.random.key(0)), "noise")


def test_a_secret_key_is_not_made_a_constant_of_a_compiled_function():
    with pytest.raises(ValueError, match=r"secret_key\(\) is being traced by jit or vmap"):
        jax.jit(lambda: jax.random.key_data(jaxdp.secret_key()))()


@pytest.mark.parametrize(
    ("name", "number", "error", "message"),
    [
        ("", 0, ValueError, "name is ''"),
        (3, 0, ValueError, "name is 3"),
        ("dropout", -1, ValueError, "number is -1: steps are counted from 0 to"),
        ("dropout", 2**31, ValueError, "number is 2147483648"),
        ("dropout", 1.5, TypeError, "number is 1.5"),
        ("dropout", True, TypeError, "number is True"),
    ],
)
def test_the_use_of_a_key_is_a_name_and_the_number_of_a_step(name, number, error, message):
    with pytest.raises(error, match=message):
        keys.jax_key(jaxdp.secret_key(), name, number)
