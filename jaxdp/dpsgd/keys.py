"""Secret keys of 128 bits, and what is derived from them: one key for every use and step.

Everything is derived by hashing (key, name of the use, number), never by using the key itself. So
one key may be given to all uses: none shares random bits with another, and no result of one tells
anything about the key.
"""

import hashlib
import secrets

import jax
import numpy as np

from ..gradients.jax_internals import is_traced
from . import processes
from .threefry import threefry_4x32


def secret_key() -> jax.Array:
    """Returns a typed key with 128 bits of the operating system's entropy.

    `privatize(plan, key=...)` and `plan.batches(key)` use all of its bits; the same key may be
    given to both. `jax.random.key(seed)`, instead, keeps 32 bits of its seed. Whoever knows the
    key can subtract the noise.

    Do not draw from it with `jax.random`: for dropout, augmentation or initial parameters take
    `jaxdp.dpsgd.jax_key(key, name, step)`.

    Use one key for one run: in two runs with one key the noise is the same, and the difference of
    their releases has none.

    In several processes of one program (`jax.distributed`) all get the key of process 0. Call it in
    all of them.

    Returns:
      A key of JAX's "rbg" kind, which holds 128 bits.

    Raises:
      ValueError: inside `jit` or `vmap`; or if other processes do not call it.
    """
    if is_traced():
        raise ValueError(
            "secret_key() is being traced by jit or vmap: the key would become a constant that "
            "every call and every member shares. Call it outside, and pass the key in"
        )
    return shared_key("secret_key()", "")


def shared_key(use: str, about: str) -> jax.Array:
    """Returns a new secret key: the same in all processes, for the same use of the same things.

    Args:
      use: of the key, for messages.
      about: what it is used for, as text: it is compared with the key.
    """
    words = np.array(processes.from_first(f"the key of {use}", drawn_words), dtype=np.uint32)
    key = jax.random.wrap_key_data(jax.numpy.asarray(words), impl="rbg")
    check_same_key(use, key, about)
    return key


def drawn_words() -> list[int]:
    """The words of a new secret key, of this process alone."""
    words: list[int] = np.frombuffer(secrets.token_bytes(16), dtype=np.uint32).tolist()
    return words


def derived(key: jax.Array, name: str, number: jax.Array | int = 0) -> jax.Array:
    """Returns the 128-bit key of a use: a hash of a key, the use's name and a number.

    It is as secret as `key` (`bits_of`). Both `key` and `number` may be traced.

    Args:
      key: a JAX key of any kind.
      name: of the use: "noise", "init", ...
      number: of the step, if every step has a key of its own; from 0 to 2^31 - 1.
    """
    tag = np.frombuffer(hashlib.sha256(f"jaxdp {name}".encode()).digest()[:8], np.uint32)
    return _hashed(jax.random.key_data(as_typed(key)), tag, number)


@jax.jit  # op by op, it would take milliseconds
def _hashed(data: jax.Array, tag: jax.Array, number: jax.Array) -> jax.Array:
    """The Threefry-4x32 block of (name, number, width of the key), under the key's own bits."""
    words = [*data.astype(jax.numpy.uint32).reshape(-1)]
    padded = [*words, *[jax.numpy.uint32(0)] * (4 - len(words))]
    counter = [*tag, number.astype(jax.numpy.uint32), jax.numpy.uint32(len(words))]
    block = jax.numpy.stack(threefry_4x32(padded, counter))
    return jax.random.wrap_key_data(block, impl="rbg")


def jax_key(key: jax.Array, name: str, number: jax.Array | int = 0) -> jax.Array:
    """Returns a key for JAX's own random functions: for one use at one step.

    JAX's Threefry has keys of 64 bits. So each of them is derived from a longer key by hashing,
    and used for one step only: who finds one by trying learns nothing about any other. Works under
    `jit`, with a traced step.

    Args:
      key: from `secret_key`, or a JAX key of any kind.
      name: of the use, such as "dropout".
      number: of the step; from 0 to 2^31 - 1.

    Returns:
      A typed Threefry key. For one key per record, fold in the record's number.

    Raises:
      TypeError, ValueError: for a key that is none, a name that is empty, or a number that is not
        whole or out of range, if it is not traced.
    """
    if not (isinstance(name, str) and name):
        raise ValueError(f"name is {name!r}: give the use of the key, such as 'dropout'")
    _check_number(number)
    words = jax.random.key_data(derived(key, f"jax {name}", number))[:2]
    return jax.random.wrap_key_data(words, impl="threefry2x32")


def bits_of(key: jax.Array) -> int:
    """The width of a key, in bits: it has at most so much entropy.

    128 for `secret_key`, 64 for JAX's Threefry keys. One that was made of a seed,
    `jax.random.key(seed)`, has 32 bits of entropy at most; that can't be told from the key.
    """
    return 32 * jax.random.key_data(as_typed(key)).size


def check_same_key(use: str, key: jax.Array, about: str) -> None:
    """Refuses a key that is not the same in all processes, or is used for something else.

    With a key of their own, hosts would draw samples without the law that is accounted, and one sum
    would be released under several noises. A traced key can't be looked at.

    Args:
      use: of the key, for the message.
      key: of this process. Call it in all of them.
      about: what it is used for, as text.
    """
    if processes.several() and not isinstance(key, jax.core.Tracer):
        with jax.ensure_compile_time_eval():  # in a function that jit traces, too
            bits = np.asarray(jax.random.key_data(as_typed(key))).tobytes()
        digest = hashlib.sha256(b"jaxdp: is a key the same? " + bits + about.encode()).hexdigest()
        processes.check_same(
            f"the key, plan or start of {use}",
            digest,
            "call it with the same arguments in all of them, and with one key",
        )


def _check_number(number: jax.Array | int) -> None:
    if not jax.numpy.issubdtype(jax.numpy.result_type(number), jax.numpy.integer):
        raise TypeError(f"number is {number!r}: it is the number of a step, a whole number")
    if not isinstance(number, jax.core.Tracer) and not np.all(
        (np.asarray(number) >= 0) & (np.asarray(number) < 2**31)
    ):
        raise ValueError(f"number is {number}: steps are counted from 0 to 2^31 - 1")


def as_typed(key: jax.Array) -> jax.Array:
    """Accepts a typed key, or an old-style `uint32` key, and returns a typed one."""
    if not isinstance(key, jax.Array):
        raise TypeError(
            f"key is {key!r}, not a JAX key: give jaxdp.secret_key(), or jax.random.key(seed) for "
            "a reproducible (and so not private) run"
        )
    if not jax.numpy.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.shape != ():
        raise ValueError(f"key has shape {key.shape}, expected one key of shape ()")
    return key


def philox_key(key: jax.Array, name: str) -> np.ndarray:
    """Returns a 128-bit Philox key `[2] uint64` for host-side sampling.

    It is a hash of all bits of the key and the name.
    """
    bits = np.asarray(jax.random.key_data(as_typed(key))).tobytes()
    data = hashlib.sha256(f"jaxdp {name}".encode() + bits).digest()[:16]
    return np.frombuffer(data, dtype=np.uint64)
