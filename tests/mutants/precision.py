"""Bugs in norms and sums of factors in bfloat16."""

from .mutant import Mutant

PRECISION = "jaxdp/gradients/precision.py"
ROUNDING = "jaxdp/gradients/rounding.py"

TESTS = "tests/gradients/test_precision.py"
CANCEL = f"{TESTS}::test_contributions_are_bounded_where_terms_cancel[matmul-0]"
TENSOR_CORES = f"{TESTS}::test_norms_are_upper_bounds_whatever_tensor_cores_cut"

MUTANTS = (
    Mutant(
        "coefficients-are-rounded-to-eight-bits",
        PRECISION,
        "bits & jnp.uint32(0xFFFF0000), jnp.float32)",
        "(bits + jnp.uint32(0x8000)) & jnp.uint32(0xFFFF0000), jnp.float32)",
        (f"{TESTS}::test_coefficients_are_cut_downwards_to_eight_bits",),
        9,
    ),
    Mutant(
        "the-low-part-of-a-scaled-cotangent-is-left-out",
        PRECISION,
        "return high, _rounded(scaled - high.astype(jnp.float32))",
        "return high, jnp.zeros_like(high)",
        (f"{TESTS}::test_a_scaled_cotangent_is_the_sum_of_two_bfloat16_numbers", CANCEL),
        9,
    ),
    Mutant(
        "a-scaled-cotangent-is-rounded-once-more",
        PRECISION,
        "return parts_of(product) if narrow else (product,)",
        "return (product.astype(jnp.bfloat16),) if narrow else (product,)",
        (CANCEL,),
        8,
    ),
    Mutant(
        "factors-are-rounded-for-the-norm-and-again-for-the-sum",
        PRECISION,
        "return lax.optimization_barrier(tuple(map(_rounded, arrays))), True",
        "return tuple(map(_rounded, arrays)), True",
        (f"{TESTS}::test_factors_are_rounded_once",),
        9,
    ),
    Mutant(
        "parts-that-cancel-have-coefficients-of-their-own",
        "jaxdp/gradients/several.py",
        "same = cut(coefficients) if self._narrow else coefficients",
        "same = coefficients",
        (f"{TESTS}::test_parts_that_cancel_have_the_same_coefficient",),
        9,
    ),
    Mutant(
        "what-tensor-cores-cut-of-a-part-that-cancels-is-forgotten",
        "jaxdp/gradients/several.py",
        "return [part.activations.shape[2] for part in products] or None",
        "return [0 for part in products] or None",
        (f"{TESTS}::test_the_sum_of_tensor_cores_is_within_the_norm_of_parts_that_meet",),
        9,
    ),
    Mutant(
        "inner-products-of-tensor-cores-are-taken-for-exact",
        ROUNDING,
        "hidden = 8 * unit + sum(map(_accumulated, [*terms, *positions, *positions]))",
        "hidden = 8 * unit",
        (TENSOR_CORES,),
        9,
    ),
    Mutant(
        "products-of-tensor-cores-are-taken-for-exact",
        ROUNDING,
        "(2 * _accumulated(length) if narrow else",
        "(0 if narrow else",
        (TENSOR_CORES,),
        9,
    ),
    Mutant(
        "all-accelerators-are-taken-for-those-that-are-known",
        PRECISION,
        'platform() in ("cuda", "tpu")',
        'platform() != "cpu"',
        (f"{TESTS}::test_where_factors_are_in_bfloat16",),
        8,
    ),
    Mutant(
        "sums-of-tensor-cores-have-the-bound-of-cpus",
        "jaxdp/gradients/matmul.py",
        "return not self.narrow and self.shape.one_term and self.activations.shape[2] == 1",
        "return self.shape.one_term and self.activations.shape[2] == 1",
        (f"{TESTS}::test_the_bound_of_the_sum_is_not_for_tensor_cores",),
        9,
    ),
    Mutant(
        "sums-of-tensor-cores-have-the-estimate-of-cpus",
        "jaxdp/dpsgd/sum_rounding.py",
        "(ACCUMULATOR if narrow else ROUNDOFF)",
        "ROUNDOFF",
        ("tests/dpsgd/test_sum_rounding.py::test_the_estimate_is_larger_on_accelerators",),
        9,
    ),
)
