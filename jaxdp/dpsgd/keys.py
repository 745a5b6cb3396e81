"""Random keys, from the entropy of the operating system unless the caller gives a key."""

import hashlib
import secrets

import jax
import numpy as np


def secret_key() -> jax.Array:
    """Returns a typed Threefry key filled with operating-system entropy.

    Unlike `jax.random.key(int)`, which keeps 32 bits of its seed, every bit of the key is random.
    Noise, sampling and unit keys are secrets: whoever knows the noise key can subtract the noise.
    Call it outside `jit`: a traced call would become a constant of the compiled function.
    """
    words = np.frombuffer(secrets.token_bytes(8), dtype=np.uint32)
    return jax.random.wrap_key_data(jax.numpy.asarray(words), impl="threefry2x32")


def stream(key: jax.Array, name: str) -> jax.Array:
    """Returns the key of a named stream (noise, init, ...). No two streams share random bits."""
    tag = int.from_bytes(hashlib.sha256(f"jaxdp {name}".encode()).digest()[:4], "little")
    return jax.random.fold_in(as_typed(key), tag)


def as_typed(key: jax.Array) -> jax.Array:
    """Accepts a typed key, or an old-style `uint32` key, and returns a typed one."""
    if not isinstance(key, jax.Array):
        raise TypeError(
            f"key is {key!r}, not a JAX key: leave it out for operating-system entropy, or "
            "pass jax.random.key(seed) for a reproducible (and so not private) run"
        )
    if not jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.shape != ():
        raise ValueError(f"key has shape {key.shape}, expected one key of shape ()")
    return key


def philox_key(key: jax.Array | None, name: str) -> np.ndarray:
    """Returns a 128-bit Philox key `[2] uint64` for host-side sampling.

    If `key` is None, it comes from the operating system. Else it is a hash of the key's bits and
    the name.
    """
    if key is None:
        data = secrets.token_bytes(16)
    else:
        bits = np.asarray(jax.random.key_data(as_typed(key))).tobytes()
        data = hashlib.sha256(f"jaxdp {name}".encode() + bits).digest()[:16]
    return np.frombuffer(data, dtype=np.uint64)
