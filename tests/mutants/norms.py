"""Bugs in the norms of every form in which gradients are held: too short is a leak."""

from .mutant import Mutant

ROUNDING = "jaxdp/gradients/rounding.py"
MATMUL = "jaxdp/gradients/matmul.py"
LOOKUP = "jaxdp/gradients/lookup.py"
REPRESENTATIONS = "jaxdp/gradients/representations.py"
TWO_PASS = "jaxdp/gradients/two_pass.py"
HARDLY = "tests/gradients/test_representations.py::test_ordinary_norms_are_hardly_inflated"

MUTANTS = (
    Mutant(
        "a-gram-sum-that-cancels-is-not-raised",
        ROUNDING,
        "return jnp.maximum(gram, 0) + hidden * jnp.square(magnitude)",
        "return jnp.maximum(gram, 0)",
        (
            "tests/gradients/test_rounding.py::test_a_gram_sum_of_terms_that_cancel_is_raised_to_the_exact_norm",
        ),
        9,
    ),
    Mutant(
        "a-product-that-cancels-is-not-raised",
        ROUNDING,
        "return jnp.square(jnp.sqrt(squared) + hidden * magnitude)",
        "return squared",
        (
            "tests/gradients/test_representations.py::test_norms_are_upper_bounds_where_terms_cancel[lookup-None-float32]",
        ),
        9,
    ),
    Mutant(
        "underflow-shortens-a-magnitude",
        ROUNDING,
        "return jnp.sqrt(jnp.sum(jnp.square(vectors), axis=-1) + hidden)",
        "return jnp.sqrt(jnp.sum(jnp.square(vectors), axis=-1))",
        ("tests/gradients/test_rounding.py::test_lengths_hide_nothing_by_underflow",),
        9,
    ),
    Mutant(
        "a-sum-of-squares-is-rounded-down",
        REPRESENTATIONS,
        "return squared * (1 + 64 * float(jnp.finfo(squared.dtype).eps))",
        "return squared",
        ("tests/dpsgd/test_clipping.py::test_norms_of_large_leaves_are_not_rounded_down",),
        9,
    ),
    Mutant(
        "the-norm-of-several-leaves-is-rounded-down",
        "jaxdp/dpsgd/clipping.py",
        "slack = 1 + len(groups.of_leaf) * _UNIT",
        "slack = 1",
        ("tests/dpsgd/test_clipping.py::test_the_norm_of_many_leaves_is_not_rounded_down",),
        9,
    ),
    Mutant(
        "a-norm-in-bfloat16",
        REPRESENTATIONS,
        "        (g,) = wide(self.gradients)\n        return guarded(",
        "        g = self.gradients\n        return guarded(",
        (
            "tests/gradients/test_per_example.py::test_bfloat16_gradients_have_float32_norms_and_sums",
        ),
        8,
    ),
    Mutant(
        "a-sum-at-the-precision-of-the-device",
        REPRESENTATIONS,
        '"b,b...->...", coefficients, rows, precision=Precision.HIGHEST)',
        '"b,b...->...", coefficients, rows)',
        (
            "tests/dpsgd/test_privatizer.py::test_matrix_products_behind_norms_and_sums_run_at_full_precision",
        ),
        8,
    ),
    Mutant(
        "the-inner-products-of-positions-are-left-out",
        MATMUL,
        "return jnp.sum(gram_matrix(a) * gram_matrix(c), axis=(2, 3))",
        "return jnp.sum(jnp.sum(jnp.square(a), 3) * jnp.sum(jnp.square(c), 3), 2)",
        (f"{HARDLY}[64-matmul-gram]",),
        1,
    ),
    Mutant(
        "two-uses-of-a-leaf-count-their-inner-product-once",
        "jaxdp/gradients/several.py",
        "total = total + 2 * inner_products(meeting[i], meeting[j])",
        "total = total + inner_products(meeting[i], meeting[j])",
        ("tests/gradients/test_several.py::test_tied_embeddings_and_penalties_are_held_in_parts",),
        1,
    ),
    Mutant(
        "two-uses-that-cancel-are-not-raised",
        "jaxdp/gradients/several.py",
        "return guarded(raised_gram(total, magnitude, self._terms(), self._positions()))",
        "return guarded(jnp.maximum(total, 0))",
        ("tests/gradients/test_several.py::test_the_rounding_of_inner_products_is_in_the_norm",),
        9,
    ),
    Mutant(
        "equal-rows-of-a-look-up-are-taken-apart",
        LOOKUP,
        "sums = jax.vmap(_row_sums)(self.rows, c)",
        "sums = c",
        ("tests/gradients/test_lookup.py::test_lookups_with_repeated_and_outside_indices",),
        1,
    ),
    Mutant(
        "a-negative-index-reads-the-first-row",
        LOOKUP,
        "inside &= self.clipped | ((index >= 0) & (index < length))",
        "inside &= self.clipped | (index < length)",
        ("tests/gradients/test_lookup.py::test_a_negative_index_of_a_gather_reads_nothing",),
        1,
    ),
    Mutant(
        "a-patch-reads-between-dilated-inputs",
        "jaxdp/gradients/convolution.py",
        "good = (at >= 0) & (at < spread) & (at % hole == 0)",
        "good = (at >= 0) & (at < spread)",
        ("tests/gradients/test_convolution.py::test_convolutions",),
        1,
    ),
    Mutant(
        "rows-of-other-experts-have-no-inner-product",
        "jaxdp/gradients/ragged.py",
        "gram = jnp.sum(jnp.where(same, gram_matrix(a) * gram_matrix(c), 0), axis=(2, 3))",
        "gram = jnp.sum(gram_matrix(a) * gram_matrix(c), axis=(2, 3))",
        (f"{HARDLY}[64-ragged-gram]",),
        1,
    ),
    Mutant(
        "a-penalty-is-as-long-as-its-largest-number",
        "jaxdp/gradients/number.py",
        "length = jnp.sqrt(jnp.sum(jnp.square(v)) + v.size * jnp.finfo(v.dtype).tiny)",
        "length = jnp.max(jnp.abs(v))",
        ("tests/gradients/test_several.py::test_tied_embeddings_and_penalties_are_held_in_parts",),
        1,
    ),
    Mutant(
        "a-standardised-kernel-that-cancels-is-not-raised",
        "jaxdp/gradients/standardise.py",
        "return guarded(jnp.sum(raised_gram(gram, magnitude, [2 * max(d, p) + 256]), axis=-1))",
        "return guarded(jnp.sum(jnp.maximum(gram, 0), axis=-1))",
        ("tests/gradients/test_standardise.py::test_norms_are_upper_bounds_where_terms_cancel",),
        9,
    ),
    Mutant(
        "a-standardised-weight-without-length-is-finite",
        "jaxdp/gradients/standardise.py",
        "return jnp.where(self.values.finite, squared, jnp.nan)",
        "return squared",
        ("tests/gradients/test_standardise.py::test_a_weight_without_length_drops_every_row",),
        6,
    ),
    Mutant(
        "a-pulled-row-may-be-longer-than-its-norm",
        "jaxdp/gradients/pulled.py",
        "c = c * jnp.where(again > told, jnp.sqrt(told / again), 1)",
        "c = c * jnp.where(again > told, 1, 1)",
        (
            "tests/gradients/test_pulled.py::test_a_row_that_comes_out_longer_the_second_time_is_shortened",
        ),
        9,
    ),
    Mutant(
        "a-use-with-several-results-is-overlooked",
        "jaxdp/gradients/uses.py",
        "            else:\n                self.add_unknown(view, eqn, path, position)\n",
        "",
        ("tests/gradients/test_uses.py::test_a_use_with_several_results_counts",),
        1,
    ),
    Mutant(
        "what-a-loop-carries-is-overlooked",
        "jaxdp/gradients/uses.py",
        "                if view is not None and view.leaves:\n"
        "                    self.add_unknown(view, eqn, path, position)\n"
        "                view = None  # it may take",
        "                view = None  # it may take",
        ("tests/gradients/test_uses.py::test_a_leaf_that_a_loop_carries_counts",),
        1,
    ),
    Mutant(
        "a-sum-in-a-loop-is-measured-without-its-rounding",
        TWO_PASS,
        "norms = slots[i] * (1 + terms * float(jnp.finfo(slots[i].dtype).eps))",
        "norms = slots[i]",
        ("tests/gradients/test_two_pass.py::test_norms_of_loops_include_their_rounding",),
        9,
    ),
    Mutant(
        "the-second-pass-may-be-longer",
        TWO_PASS,
        "return allowed(found.squared), found",
        "return found.values == found.values, found",
        (
            "tests/gradients/test_two_pass.py::test_a_row_that_is_too_long_in_the_second_pass_is_left_out",
        ),
        9,
    ),
    Mutant(
        "privatize-does-not-take-the-excess-of-two-passes-off",
        "jaxdp/dpsgd/privatizer.py",
        "strict=True)  # the noise is for C itself",
        "strict=False)",
        ("tests/gradients/test_two_pass.py::test_privatize_takes_the_excess_off_the_sum",),
        9,
    ),
    Mutant(
        "two-passes-always-have-a-rounding-bound",
        TWO_PASS,
        "return all(place.choice.one_term for place in self._places)",
        "return True",
        ("tests/gradients/test_two_pass.py::test_several_terms_are_told",),
        9,
    ),
    Mutant(
        "held-gradients-always-have-a-rounding-bound",
        "jaxdp/gradients/held.py",
        "return all(leaf.one_term for leaf in self.leaves)",
        "return True",
        ("tests/dpsgd/test_sum_rounding.py::test_a_bound_is_not_for_gradients_of_several_terms",),
        9,
    ),
)
