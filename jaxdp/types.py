"""The types that all parts of jaxdp share, and what their values mean."""

from collections.abc import Callable
from typing import Any, Literal

Unit = Literal["example", "batch"]
"""Which gradient is clipped.

- `"example"`: the gradient of every example ("individual clipping").
- `"batch"`: the mean gradient of every batch unit ("batch clipping"). Each record of a step is in
  one of m units.
"""

Method = Literal["auto", "factored", "two_pass", "vmap"]
"""How the gradients of single examples are computed.

- `"auto"`: each layer's as factors of a product or as an array, whichever is cheaper.
- `"factored"`: as factors of a product wherever there is a rule.
- `"two_pass"`: never held; once for the norms and once more for the sum.
- `"vmap"`: every example on its own.
"""

ComputeDtype = Literal["float32", "bfloat16"]
"""What a model computes in, in the loss."""

MatrixPrecision = Literal["default", "highest"]
"""How exactly the matrix products behind norms and sums are computed.

- `"default"`: on TPUs and NVIDIA's GPUs, of factors that are rounded to bfloat16; elsewhere, and
  where `jax_default_matmul_precision` asks for more than JAX's default, as "highest".
- `"highest"`: in float32 or wider.
"""

Sampling = Literal["poisson", "shuffled", "fixed_size", "full_batch"]
"""How the batch of a step is chosen.

- `"poisson"`: every record joins the batch with the same probability, independently of the others.
- `"shuffled"`: every epoch takes the records in a new random order and cuts it into batches.
- `"fixed_size"`: a new batch of fixed size is drawn for every step, without replacement.
- `"full_batch"`: every batch is the whole data set.
"""

Adjacency = Literal["add_remove", "replace_one", "zero_out"]
"""Which two data sets are neighbours. The guarantee says that they are hard to tell apart.

- `"add_remove"`: one of them has one more record.
- `"replace_one"`: they are of the same size, and one record differs.
- `"zero_out"`: in one of them, one record is replaced by an empty one, whose gradient is zero.
"""

Accountant = Literal["pld", "rdp"]
"""How the privacy loss of many steps is added up.

- `"pld"`: privacy loss distributions, the tightest.
- `"rdp"`: Rényi differential privacy, looser.
"""

Schedule = tuple[tuple[float, int], ...]
"""Noise multipliers over time: `((z, count), ...)` is z for `count` steps, then the next pair's."""

ClippingKind = Literal["individual", "batch", "layerwise", "multiplied", "normalised", "quantile"]
"""Which clipping: `"individual"` is that of `clip_individual`, and so on."""

Layer = Literal["tensor", "module"]
"""What a layer is where layers are clipped apart: every tensor, or all tensors of a module."""

Allocation = Literal["proportional", "isotropic", "dimension"]
"""How layers that are clipped apart share the noise: see `privatize`."""

PyTree = Any
"""A nested container of arrays: dicts, lists, tuples, or any other that `jax.tree` knows."""

Tell = Callable[[str], None]
"""A function that gets a line for the user: something takes long, or is not as expected."""
