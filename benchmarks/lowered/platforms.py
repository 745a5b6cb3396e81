"""What a product costs on a platform, in passes of its matrix units over bfloat16 numbers."""

from contextlib import AbstractContextManager
from unittest import mock

from jaxdp.gradients import precision

from .counting import Kind

# A float32 product on a TPU is 1, 3 or 6 products of bfloat16 parts
# (https://docs.jax.dev/en/latest/jax.lax.html#jax.lax.Precision).
TPU_PASSES = {"DEFAULT": 1, "HIGH": 3, "HIGHEST": 6}

# On a GPU it runs in TF32 on tensor cores, or in float32 beside them. An A100 does 312, 156 and
# 19.5 dense TFLOPS in bfloat16, TF32 and float32 (NVIDIA A100 data sheet).
CUDA_PASSES = {"DEFAULT": 2, "HIGH": 2, "HIGHEST": 16}

NARROW = {"bf16", "f16"}


def passes(platform: str, kind: Kind) -> float:
    """Returns how many times as long an operation of that kind takes as one of bfloat16 numbers.

    On CPUs it is 1: there all precisions are float32.
    """
    if platform == "cpu" or set(kind.types) <= NARROW:
        return 1
    return {"tpu": TPU_PASSES, "cuda": CUDA_PASSES}[platform][kind.precision]


PLATFORMS = ("cpu", "cuda", "tpu")


def traced_for(platform: str) -> AbstractContextManager:
    """Lets jaxdp trace the programs that it would where JAX runs on a platform by default."""
    return mock.patch.object(precision, "platform", return_value=platform)
