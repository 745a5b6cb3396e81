"""Secrets: full width, one stream for each use, and none shared (privacy rule 10)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.problems import flat64
from helpers.releases import FALSE_ALARM, PARAMS, make_plan, releases
from scipy.stats import norm

import jaxdp
from jaxdp.dpsgd import keys

PARAMS_OF_TWO = jax.tree.map(lambda p: jnp.stack([p, p]), PARAMS)


def test_secret_keys_use_their_full_width():
    drawn = np.stack([np.asarray(jax.random.key_data(jaxdp.secret_key())) for _ in range(64)])
    bits = np.unpackbits(drawn.view(np.uint8), axis=1)
    # Each bit of 64 keys is both 0 and 1 somewhere: false alarm 64 * 2 * 2^-64.
    assert bits.any(axis=0).all()
    assert (1 - bits).any(axis=0).all()


def test_noise_and_other_streams_of_one_key_are_apart():
    key = jax.random.key(0)
    state = jaxdp.privatize(make_plan(), key=key).init(PARAMS)
    names = ("noise", "init", "augmentation", "sampling", "units")
    streams = {name: jax.random.key_data(keys.stream(key, name)).tobytes() for name in names}
    assert len(set(streams.values())) == len(names)
    assert jax.random.key_data(state.privatize_key).tobytes() == streams["noise"]
    philox = {name: keys.philox_key(key, name).tobytes() for name in names}
    assert len(set(philox.values())) == len(names)


def test_the_noise_key_is_not_the_given_key_itself():
    # A user who also initialises the model from this key must not publish the noise by it.
    key = jax.random.key(0)
    state = jaxdp.privatize(make_plan(), key=key).init(PARAMS)
    assert not np.array_equal(jax.random.key_data(state.privatize_key), jax.random.key_data(key))


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
    grads = lambda p: jaxdp.from_dense(jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), p))
    shared = jax.vmap(jax.jit(lambda p, s: tx.update(grads(p), s, p)[0]), (0, None))
    with pytest.raises(ValueError, match="share their noise"):
        shared(PARAMS_OF_TWO, one)
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), one, tx.init(PARAMS))
    own = jax.vmap(jax.jit(lambda p, s: tx.update(grads(p), s, p)[0]))
    a, b = (flat64(jax.tree.map(lambda m: m[i], own(PARAMS_OF_TWO, states))) for i in range(2))
    assert abs(np.corrcoef(a, b)[0, 1]) <= norm.isf(FALSE_ALARM / 2) / np.sqrt(a.size)
