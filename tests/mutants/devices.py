"""Bugs in steps on several devices."""

from .mutant import Mutant

EIGHT_DEVICES = ("tests/test_devices.py::test_eight_devices[not slow]",)

MUTANTS = (
    Mutant(
        "devices-that-share-parameters-are-not-added-to-the-others",
        "jaxdp/dpsgd/privatizer.py",
        "return jax.lax.psum(total, axes) if axes else total",
        "return total",
        EIGHT_DEVICES,
        45,
    ),
    Mutant(
        "sums-are-scattered-along-axes-that-are-not-counted",
        "jaxdp/dpsgd/privatizer.py",
        "        check_scattered(scattered, axes)\n",
        "",
        EIGHT_DEVICES,
        45,
    ),
    Mutant(
        "each-device-clips-its-own-part-of-a-gradient",
        "jaxdp/dpsgd/privatizer.py",
        "if grads.split_axes:",
        "if False:",
        EIGHT_DEVICES,
        45,
    ),
)
