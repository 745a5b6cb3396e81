"""Bugs in what is charged: orders, direction of rounding, adjacency, composition."""

from .mutant import Mutant

GUARANTEE = "jaxdp/accounting/guarantee.py"
MECHANISM = "jaxdp/accounting/mechanism.py"
COMPOSITION = "jaxdp/accounting/composition.py"
PLD = "jaxdp/accounting/pld.py"
CHARGE = "jaxdp/accounting/noise_charge.py"
TESTS = "tests/accounting/test_guarantee.py"

MUTANTS = (
    Mutant(
        "a-printed-number-is-rounded-down",
        "jaxdp/accounting/rounding.py",
        "rounding=decimal.ROUND_CEILING",
        "rounding=decimal.ROUND_HALF_EVEN",
        ("tests/accounting/test_rounding.py::test_no_number_is_rounded_down",),
        13,
    ),
    Mutant(
        "a-printed-delta-is-rounded-to-the-nearest",
        "jaxdp/accounting/rounding.py",
        "return round_up(delta, 3)",
        'return float(f"{delta:.3g}")',
        ("tests/accounting/test_rounding.py::test_no_delta_is_rounded_down",),
        13,
    ),
    Mutant(
        "a-solved-noise-multiplier-is-rounded-down",
        "jaxdp/accounting/calibration.py",
        "return rounded if rounded >= z else round(z + 10.0**-digits, digits)",
        "return rounded",
        ("tests/accounting/test_calibration.py::test_six_digits_are_rounded_up",),
        13,
    ),
    Mutant(
        "the-solved-noise-is-not-checked-again",
        "jaxdp/accounting/calibration.py",
        "if charge.epsilon_at(delta, exact) <= target_epsilon:",
        "if True:",
        ("tests/accounting/test_calibration.py::test_the_solved_noise_is_checked_by_its_epsilon",),
        13,
    ),
    Mutant(
        "rounding-errors-of-rdp-are-taken-for-none",
        GUARANTEE,
        "return kept, np.maximum(accountant.rdp, 0.0) + off * steps / (kept - 1)",
        "return kept, np.maximum(accountant.rdp, 0.0)",
        (f"{TESTS}::test_rounding_of_small_divergences_is_not_taken_for_none",),
    ),
    Mutant(
        "rdp-forgets-the-steps-of-a-schedule",
        GUARANTEE,
        "            for event in events:\n",
        "            for event in events[:1]:\n",
        (
            "tests/accounting/test_composition.py::test_parts_with_other_sampling_lie_between_bounds",
        ),
    ),
    Mutant(
        "the-mass-of-a-cell-goes-to-its-lower-end",
        PLD,
        "upper = np.clip(upper, 0.0, p_cell)",
        "upper = np.zeros_like(p_cell)",
        ("tests/accounting/test_pld.py::test_one_step_equals_direct_integration",),
    ),
    Mutant(
        "the-mass-at-infinity-is-lost",
        PLD,
        "return first, probs, float(p_above[-1])",
        "return first, probs, 0.0",
        ("tests/accounting/test_pld.py::test_one_step_equals_direct_integration",),
    ),
    Mutant(
        "the-rounding-of-the-transform-is-taken-for-none",
        PLD,
        "return 1e-13 + 4e-16 * steps",
        "return 0.0",
        ("tests/accounting/test_pld.py::test_rounding_of_the_transform_is_within_its_bound",),
    ),
    Mutant(
        "one-direction-of-add-and-remove-is-left-out",
        PLD,
        'else ["remove", "add"]',
        'else ["add"]',
        ("tests/accounting/test_pld.py::test_agrees_with_dp_accounting_and_is_never_coarser",),
        12,
    ),
    Mutant(
        "a-replaced-record-is-accounted-as-removed",
        GUARANTEE,
        'replace=mechanism.adjacency == "replace_one",',
        "replace=False,",
        (f"{TESTS}::test_sampled_replace_one_is_given_std_over_c",),
        12,
    ),
    Mutant(
        "batch-units-under-replace-one-are-under-counted",
        MECHANISM,
        'return 2.0 if doubles and mechanism.unit == "example" else 1.0',
        "return 2.0 if doubles else 1.0",
        (f"{TESTS}::test_batch_units_under_replace_one_are_not_under_counted",),
        12,
    ),
    Mutant(
        "rdp-is-asked-about-replaced-records",
        MECHANISM,
        '    ("poisson", "replace_one"): ("pld",),\n',
        '    ("poisson", "replace_one"): ("pld", "rdp"),\n',
        (
            "tests/accounting/test_mechanism.py::test_sound_combinations_run_and_all_others_are_refused",
        ),
        12,
    ),
    Mutant(
        "an-epoch-that-was-begun-is-free",
        MECHANISM,
        "return -(-self.steps // batches_per_epoch(self.num_examples or 0, self.batch_size))",
        "return self.steps // batches_per_epoch(self.num_examples or 0, self.batch_size)",
        (f"{TESTS}::test_shuffled_epochs_are_unamplified_gaussians_one_per_epoch_begun",),
        12,
    ),
    Mutant(
        "a-short-last-batch-is-no-batch",
        MECHANISM,
        "return math.ceil(num_examples / batch_size)",
        "return max(1, int(num_examples // batch_size))",
        ("tests/accounting/test_mechanism.py::test_the_last_batch_of_an_epoch_may_be_short",),
        12,
    ),
    Mutant(
        "an-epoch-has-the-noise-of-its-last-batch",
        MECHANISM,
        "least[within] = np.minimum(least[within], z)",
        "least[within] = z",
        (
            "tests/accounting/test_mechanism.py::test_a_schedule_over_shuffled_epochs_counts_the_least_noise_of_each",
        ),
        12,
    ),
    Mutant(
        "many-gaussians-cost-as-one",
        GUARANTEE,
        "math.hypot(*(math.sqrt(count) / z for z, count in mechanism.exposures))",
        "math.hypot(*(1 / z for z, count in mechanism.exposures))",
        (f"{TESTS}::test_full_batch_schedules_have_the_closed_form",),
    ),
    Mutant(
        "equal-segments-are-charged-once",
        COMPOSITION,
        "counts[z] = counts.get(z, 0) + count",
        "counts[z] = count",
        ("tests/accounting/test_composition.py::test_parts_of_a_run_cost_what_the_run_costs",),
        15,
    ),
    Mutant(
        "every-sampling-has-the-whole-delta",
        COMPOSITION,
        "delta / len(samplings))",
        "delta)",
        ("tests/trainer/test_spending.py::test_other_samplings_are_added",),
        30,
    ),
    Mutant(
        "one-step-more-than-fits",
        COMPOSITION,
        "return max(low, 0)",
        "return high",
        (
            "tests/accounting/test_composition.py::test_what_is_planned_is_affordable_and_no_step_more",
        ),
        13,
    ),
    Mutant(
        "the-law-of-the-noise-is-charged-too-little",
        CHARGE,
        "22: (3.9e-12, 7.0e-8, 2.45e-21),",
        "22: (3.9e-13, 7.0e-8, 2.45e-21),",
        ("tests/dpsgd/test_noise_tables.py::test_the_errors_of_every_eighth_cell",),
        23,
    ),
    Mutant(
        "the-law-of-the-sample-s-size-is-free",
        CHARGE,
        "max(c.delta_each for c in charges) + sampled_steps * SAMPLING,",
        "max(c.delta_each for c in charges),",
        (
            "tests/accounting/test_noise_charge.py::test_sampling_is_charged_as_what_is_shared_by_both_data_sets",
        ),
        23,
    ),
    Mutant(
        "the-noise-s-own-epsilon-is-not-added",
        CHARGE,
        "new = exact(left) + self.epsilon",
        "new = exact(left)",
        ("tests/accounting/test_noise_charge.py::test_epsilon_and_delta_are_each_others_inverse",),
        23,
    ),
    Mutant(
        "the-noise-of-one-step-is-charged",
        GUARANTEE,
        "sum(m.noise_draws_per_step * m.steps for m in drawn),",
        "sum(m.noise_draws_per_step for m in drawn),",
        (
            "tests/accounting/test_noise_charge.py::test_segments_are_charged_for_all_their_draws_together",
        ),
        23,
    ),
    Mutant(
        "a-record-that-takes-part-seldom-is-safe-too-early",
        GUARANTEE,
        "0.0 if delta >= chance else math.inf",
        "0.0 if delta >= 0.98 * chance else math.inf",
        (
            "tests/sharp_edges/test_extremes.py::test_a_record_that_is_hardly_ever_used_costs_nothing",
        ),
    ),
    Mutant(
        "a-group-in-a-batch-moves-it-as-one-record",
        "jaxdp/accounting/tradeoffs.py",
        "squares = float(at_once**2)",
        "squares = float(at_once)",
        ("tests/accounting/test_tradeoffs.py::test_a_group_in_a_full_batch_moves_it_all_at_once",),
    ),
    Mutant(
        "q-is-rounded-to-float32",
        MECHANISM,
        'object.__setattr__(self, "sampling_probability", float(self.sampling_probability))',
        'object.__setattr__(self, "sampling_probability", np.float32(self.sampling_probability))',
        ("tests/sharp_edges/test_extremes.py::test_numbers_of_numpy_are_taken_in_full_precision",),
    ),
    Mutant(
        "a-delta-of-one-over-n-is-taken",
        "jaxdp/dpsgd/_plan_numbers.py",
        "if not 0 < delta < 1 / num_examples:",
        "if not 0 < delta < 1:",
        ("tests/dpsgd/test_plan.py::test_bad_numbers_are_named_with_the_cure",),
        14,
    ),
)
