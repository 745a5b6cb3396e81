"""Bugs in who contributes: padding, rows that are not finite, rows that see each other."""

from .mutant import Mutant

HELD = "jaxdp/gradients/held.py"
TWO_PASS = "jaxdp/gradients/two_pass.py"
SUMS = "jaxdp/dpsgd/sums.py"
BATCHES = "tests/sharp_edges/test_batches.py"
LAZY = "tests/gradients/test_lazy.py"
ROWS_DROPPED = (
    "tests/gradients/test_representations.py::test_rows_that_are_not_finite_show_and_can_be_dropped"
)

MUTANTS = (
    Mutant(
        "a-row-that-is-not-finite-contributes",
        HELD,
        "sum_of_kept(leaf, c, rows.valid, all_valid)",
        "sum_of_kept(leaf, c, rows.mask, all_valid)",
        (f"{LAZY}::test_a_nonfinite_example_contributes_zero_and_the_others_stay",),
        6,
    ),
    Mutant(
        "a-masked-row-contributes",
        "jaxdp/gradients/clip.py",
        "return self.mask & self.finite",
        "return self.finite",
        (f"{LAZY}::test_masked_rows_contribute_exactly_zero_whatever_they_hold",),
        6,
    ),
    Mutant(
        "a-masked-row-is-multiplied-by-zero",
        HELD,
        "zeroed = lambda: leaf.keep(kept).weighted_sum(weights)",
        "zeroed = lambda: leaf.weighted_sum(weights)",
        (f"{LAZY}::test_masked_rows_contribute_exactly_zero_whatever_they_hold",),
        6,
    ),
    Mutant(
        "activations-of-dropped-rows-stay",
        "jaxdp/gradients/matmul.py",
        "            activations=jnp.where(rows, self.activations, 0),\n",
        "            activations=self.activations,\n",
        (f"{ROWS_DROPPED}[matmul-gram-activation-nan]",),
        6,
    ),
    Mutant(
        "inputs-of-dropped-rows-stay",
        "jaxdp/gradients/convolution.py",
        "return replace(self, inputs=rows(self.inputs), cotangents=rows(self.cotangents))",
        "return replace(self, cotangents=rows(self.cotangents))",
        (f"{ROWS_DROPPED}[conv-gram-activation-nan]",),
        6,
    ),
    Mutant(
        "a-row-that-is-not-finite-spoils-the-others",
        "jaxdp/gradients/isolation.py",
        "return has_convolution(jax.make_jaxpr(of_rows)(several), _is_grouped)",
        "return False",
        ("tests/gradients/test_isolation.py::test_where_rows_are_groups_is_seen",),
        6,
    ),
    Mutant(
        "a-bad-row-of-one-leaf-stays-in-the-others",
        TWO_PASS,
        "return jnp.isfinite(sum(found.squared)), found.with_held(weights)",
        "return jnp.isfinite(found.squared[0]), found.with_held(weights)",
        (
            "tests/gradients/test_one_pass.py::test_a_row_that_is_not_finite_in_one_leaf_is_out_in_all",
        ),
        6,
    ),
    Mutant(
        "a-bad-row-returns-in-the-next-pass",
        TWO_PASS,
        "return vary((kept & good, found, jnp.all(good | ~kept)), self._axes)",
        "return vary((kept, found, jnp.ones_like(jnp.all(good))), self._axes)",
        (
            "tests/gradients/test_two_pass.py::test_a_row_that_is_too_long_in_the_second_pass_is_left_out",
        ),
        6,
    ),
    Mutant(
        "padding-is-counted-within-the-norm",
        "jaxdp/dpsgd/privatizer.py",
        "jnp.where(rows.valid, within - 0.5, 0)",
        "jnp.where(rows.valid | True, within - 0.5, 0)",
        ("tests/dpsgd/test_clippings.py::test_quantile_counts_leave_out_padding_and_are_noised",),
        6,
    ),
    Mutant(
        "a-forgotten-mask-is-taken-for-full",
        SUMS,
        "    if mask is None:\n",
        "    if mask is None:\n        mask = np.ones(grads.rows_at_once, bool)\n    if False:\n",
        (f"{BATCHES}::test_a_forgotten_mask_is_an_error",),
        24,
    ),
    Mutant(
        "padding-may-come-first",
        SUMS,
        "padding_last = (known[..., :-1] >= known[..., 1:]).all()",
        "padding_last = (known[..., :-1] == known[..., :-1]).all()",
        (f"{BATCHES}::test_an_inverted_mask_is_an_error_and_inside_jit_nan",),
        24,
    ),
    Mutant(
        "padding-is-a-copy-of-record-0",
        "jaxdp/dpsgd/rows.py",
        "        taken[padding] = np.zeros((), taken.dtype)\n",
        "",
        (f"{BATCHES}::test_rows_are_taken_from_the_plans_own_records_only",),
        24,
    ),
    Mutant(
        "padding-has-the-index-of-a-record",
        "jaxdp/dpsgd/sampling.py",
        "constant_values=padding",
        "constant_values=0",
        (f"{BATCHES}::test_rows_are_taken_from_the_plans_own_records_only",),
        24,
    ),
    Mutant(
        "a-record-may-be-in-a-batch-twice",
        "jaxdp/dpsgd/rows.py",
        "if np.any(drawn[1:] == drawn[:-1]):",
        "if False:",
        (f"{BATCHES}::test_rows_are_taken_from_the_plans_own_records_only",),
        24,
    ),
    Mutant(
        "a-unit-sees-its-masked-records",
        "jaxdp/gradients/_checks.py",
        "return jnp.where(mask.reshape(shape + (1,) * (leaf.ndim - 2)), leaf, 0)",
        "return leaf",
        (
            "tests/gradients/test_unit_loss.py::test_a_unit_loss_sees_zeros_for_masked_records_and_its_own_mask",
        ),
        6,
    ),
    Mutant(
        "a-loss-may-see-other-examples",
        "jaxdp/gradients/coupling.py",
        "if eqn.primitive in primitives and _reaches_out(eqn):",
        "if False:",
        (
            "tests/gradients/test_coupling.py::test_what_couples_examples_is_refused_by_name[auto-<lambda>-with_callback-pure_callback]",
        ),
        19,
    ),
    Mutant(
        "one-draw-serves-all-examples",
        "jaxdp/gradients/coupling.py",
        "if (kind := foreign_key(eqn)) is not None:",
        "if (kind := None) is not None:",
        (
            "tests/sharp_edges/test_gradients.py::test_keys_whose_draws_are_shared_under_vmap_are_refused",
        ),
        19,
    ),
    Mutant(
        "the-loss-may-hold-all-private-rows",
        "jaxdp/trainer/setup.py",
        "if any(map(job.data.real.hold, constants(program.jaxpr))):",
        "if False:",
        ("tests/trainer/test_fit.py::test_private_rows_that_a_step_holds_are_refused",),
        19,
    ),
    Mutant(
        "constant-time-skips-padding",
        "jaxdp/gradients/lazy.py",
        "        if not self._constant_time:\n            last_row",
        "        if True:\n            last_row",
        (f"{BATCHES}::test_the_program_of_constant_time_does_not_look_at_the_records",),
        28,
    ),
    Mutant(
        "constant-time-adds-up-in-a-branch",
        TWO_PASS,
        "all_kept = None if constant_time else jnp.all(kept)\n            found",
        "all_kept = jnp.all(kept)\n            found",
        (f"{BATCHES}::test_the_program_of_constant_time_does_not_look_at_the_records",),
        28,
    ),
    Mutant(
        "constant-time-is-forgotten-where-two-passes-hold-gradients",
        TWO_PASS,
        "Held(*auto_engine(loss_fn, params, batch, constant_time, narrow=narrow))",
        "Held(*auto_engine(loss_fn, params, batch, False, narrow=narrow))",
        (
            "tests/gradients/test_isolation.py::test_constant_time_has_no_branch_where_rows_are_taken_apart",
        ),
        28,
    ),
    Mutant(
        "statistics-among-the-parameters-pass",
        "jaxdp/gradients/_checks.py",
        "if not is_variable(leaf) or isinstance(leaf, nnx.Param):",
        "if True:",
        (
            "tests/sharp_edges/test_batchnorm.py::test_an_nnx_model_without_its_parameters_apart_is_refused",
        ),
        16,
    ),
    Mutant(
        "statistics-for-release-come-from-private-records",
        "jaxdp/trainer/setup.py",
        "return task.statistics(params, public.good_fields())",
        "return task.statistics(params, self.job.data.private.good_fields())",
        (
            "tests/trainer/test_session_batchnorm.py::test_statistics_do_not_depend_on_private_records",
        ),
        16,
    ),
)
