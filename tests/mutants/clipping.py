"""Bugs in how contributions are bounded: coefficients, sensitivities, the divisor."""

from .mutant import Mutant

CLIPPING = "jaxdp/dpsgd/clipping.py"
PRIVATIZER = "jaxdp/dpsgd/privatizer.py"
SENSITIVITY = "tests/dpsgd/test_clipping_sensitivity.py"

MUTANTS = (
    Mutant(
        "a-gradient-may-be-twice-as-long",
        CLIPPING,
        "return jnp.minimum(1, clipping_norms / norms)",
        "return jnp.minimum(1, 2 * clipping_norms / norms)",
        ("tests/dpsgd/test_clipping.py::test_no_example_contributes_more_than_the_clipping_norm",),
        1,
    ),
    Mutant(
        "all-gradients-get-the-mean-coefficient",
        "jaxdp/gradients/held.py",
        "        all_valid = None if constant_time else jnp.all(rows.valid)\n",
        "        all_valid = None if constant_time else jnp.all(rows.valid)\n"
        "        coefficients = [jnp.full_like(c, jnp.mean(c)) for c in coefficients]\n",
        ("tests/gradients/test_per_example.py::test_clipped_sum_matches_a_float64_loop",),
        1,
    ),
    Mutant(
        "a-normalised-gradient-is-longer-than-c",
        CLIPPING,
        "return clipping_norms / (norms + self.stability)",
        "return clipping_norms / jnp.maximum(norms - self.stability, self.stability)",
        ("tests/dpsgd/test_clippings.py::test_normalised_clipping",),
        1,
    ),
    Mutant(
        "a-batch-unit-moves-by-one-clipping-norm",
        "jaxdp/accounting/mechanism.py",
        'return 2 if unit == "batch" or adjacency == "replace_one" else 1',
        'return 2 if adjacency == "replace_one" else 1',
        (
            "tests/accounting/test_mechanism.py::test_the_sensitivity_factor_is_the_whole_number_1_or_2",
        ),
        1,
    ),
    Mutant(
        "a-replaced-record-moves-by-one-clipping-norm",
        "jaxdp/accounting/mechanism.py",
        'return 2 if unit == "batch" or adjacency == "replace_one" else 1',
        'return 2 if unit == "batch" else 1',
        ("tests/dpsgd/test_plan.py::test_replace_one_doubles_the_noise_and_not_epsilon_alone",),
        1,
    ),
    Mutant(
        "layers-that-are-clipped-apart-add-up-to-one",
        CLIPPING,
        "(max(first) if self.joint else math.hypot(*first))",
        "max(first)",
        (
            "tests/dpsgd/test_groups.py::test_k_groups_give_the_root_of_k_where_layers_give_the_root_of_l",
        ),
        1,
    ),
    Mutant(
        "layers-that-move-at-a-step-add-up-to-one",
        CLIPPING,
        "norm = jnp.max if self.joint else lambda c: jnp.sqrt(jnp.sum(jnp.square(c)))",
        "norm = jnp.max",
        (f"{SENSITIVITY}::test_a_crafted_pair_attains_the_sensitivity",),
        1,
    ),
    Mutant(
        "a-multiplied-gradient-leaves-its-ellipsoid",
        CLIPPING,
        "joint = largest * jnp.sqrt(jnp.sum(squares, axis=0) * (1 + (len(ratios) + 8) * 2.0**-23))",
        "joint = largest",
        ("tests/dpsgd/test_clipping_multiplied.py::test_no_contribution_leaves_the_ellipsoid",),
        1,
    ),
    Mutant(
        "an-infinite-joint-norm-is-nan",
        CLIPPING,
        "    joint = jnp.where(jnp.isfinite(largest), joint, jnp.inf)\n",
        "",
        (
            "tests/dpsgd/test_clipping_multiplied.py::test_norms_at_the_edge_of_overflow_make_nothing_nan",
        ),
        21,
    ),
    Mutant(
        "the-count-of-a-quantile-moves-by-less",
        CLIPPING,
        "return self.record_factor(adjacency) / 2",
        "return self.record_factor(adjacency) / 4",
        ("tests/dpsgd/test_noise.py::test_effective_noise_multiplier_of_what_is_released",),
        2,
    ),
    Mutant(
        "a-frozen-group-is-added-up",
        CLIPPING,
        "return [nothing if g is None else of_groups[g] for g in groups.of_leaf]",
        "return [of_groups[0] if g is None else of_groups[g] for g in groups.of_leaf]",
        ("tests/dpsgd/test_clipping_sensitivity.py::test_a_frozen_groups_sum_is_zero",),
        1,
    ),
    Mutant(
        "a-frozen-group-is-released-without-noise",
        PRIVATIZER,
        "            zeros = [jnp.zeros(leaf.shape, d) for leaf, d in "
        "zip(leaves, dtypes, strict=True)]\n",
        "            zeros = [leaf.astype(d) for leaf, d in zip(leaves, dtypes, strict=True)]\n",
        (f"{SENSITIVITY}::test_the_sign_of_a_frozen_groups_zeros_tells_nothing",),
        1,
    ),
    Mutant(
        "the-divisor-is-the-sampled-number",
        PRIVATIZER,
        "means = [noised.get(i, zero) for i, zero in enumerate(zeros)]",
        "share = plan.divisor / jnp.maximum(sums.diagnostics.count, 1)\n"
        "            means = [share * noised.get(i, zero) for i, zero in enumerate(zeros)]",
        ("tests/dpsgd/test_privatizer.py::test_the_divisor_is_the_same_for_every_sample",),
        5,
    ),
    Mutant(
        "clipping-norms-of-the-state-are-taken-as-they-are",
        CLIPPING,
        "return jnp.maximum(clipping_norms, SMALLEST_CLIPPING_NORM)",
        "return clipping_norms",
        (
            "tests/dpsgd/test_noise.py::test_noise_is_never_for_less_than_the_smallest_clipping_norm",
        ),
        3,
    ),
    Mutant(
        "one-finite-clipping-norm-is-enough",
        CLIPPING,
        "return all(math.isfinite(norm) for norm in self._first_norms())",
        "return any(math.isfinite(norm) for norm in self._first_norms())",
        ("tests/dpsgd/test_plan.py::test_a_group_without_a_bound_has_no_plan",),
        1,
    ),
    Mutant(
        "a-mean-gradient-passes-for-many",
        "jaxdp/gradients/_checks.py",
        "if leaf.ndim != 1 + len(shape) or leaf.shape[1:] != shape:",
        "if False:",
        ("tests/sharp_edges/test_gradients.py::test_a_mean_gradient_is_no_batch_of_gradients",),
        27,
    ),
    Mutant(
        "gradients-of-other-parameters-are-released",
        "jaxdp/dpsgd/_checks.py",
        "if leaf.shape != jnp.shape(param):",
        "if False:",
        (
            "tests/sharp_edges/test_gradients.py::test_gradients_of_other_parameters_are_refused_when_optax_passes_the_parameters",
        ),
        27,
    ),
    Mutant(
        "the-sums-of-another-clipping-are-released",
        PRIVATIZER,
        "if sums.clipping != clipping:",
        "if False:",
        ("tests/sharp_edges/test_gradients.py::test_sums_of_another_clipping_are_refused",),
        25,
    ),
)
