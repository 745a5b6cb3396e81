"""Bugs in what a release claims: too small an ε, limits that are left out."""

from .mutant import Mutant

CLAIMS = "jaxdp/trainer/release/claims.py"
MARKDOWN = "jaxdp/trainer/release/markdown.py"
TESTS = "tests/trainer/release/test_claims.py"
PAGE = "tests/trainer/release/test_markdown.py"

MUTANTS = (
    Mutant(
        "the-claim-is-that-of-the-last-segment",
        CLAIMS,
        "epsilon=epsilons(plan, steps, None, before),",
        "epsilon=epsilons(plan, steps, None),",
        (f"{TESTS}::test_every_segment_with_steps_is_a_mechanism_of_its_own",),
        18,
    ),
    Mutant(
        "the-claim-is-rounded-to-the-nearest",
        CLAIMS,
        "return {name: round_up(composition.epsilon(spent, delta, name)) for name in names}",
        'return {n: float(f"{composition.epsilon(spent, delta, n):.3g}") for n in names}',
        (f"{TESTS}::test_epsilon_at_smaller_deltas_is_the_accountants",),
        13,
    ),
    Mutant(
        "steps-of-earlier-segments-are-not-told",
        CLAIMS,
        "steps=sum(mechanism.steps for mechanism in mechanisms),",
        "steps=steps,",
        (f"{TESTS}::test_every_segment_with_steps_is_a_mechanism_of_its_own",),
        18,
    ),
    Mutant(
        "a-seeded-run-is-called-private",
        CLAIMS,
        "private=facts.seed is None,",
        "private=True,",
        (f"{TESTS}::test_a_seeded_run_is_not_private",),
        18,
    ),
    Mutant(
        "a-seed-is-said-to-have-128-bits",
        CLAIMS,
        "key_bits=128 if seed is None else 32,",
        "key_bits=128,",
        (f"{TESTS}::test_the_noise_is_named_with_what_it_costs",),
        10,
    ),
    Mutant(
        "another-adjacency-is-claimed",
        CLAIMS,
        "adjacency=plan.adjacency,",
        'adjacency="add_remove",',
        (f"{TESTS}::test_the_adjacency_is_the_plan_s",),
        12,
    ),
    Mutant(
        "an-estimate-is-called-a-bound",
        CLAIMS,
        'kind="bound" if plan.rounding_is_bounded else "estimate",',
        'kind="bound",',
        (f"{TESTS}::test_the_rounding_of_the_sum_is_told_with_a_bound_if_there_is_one",),
        9,
    ),
    Mutant(
        "tuning-on-the-records-is-not-named",
        CLAIMS,
        '    "Hyperparameters chosen by trying several on the same private records.",\n',
        "",
        (f"{TESTS}::test_what_is_not_covered_names_every_limit",),
        18,
    ),
    Mutant(
        "records-that-were-public-before-are-not-told",
        CLAIMS,
        "if use != facts.data\n",
        "if False\n",
        (f"{TESTS}::test_records_that_earlier_segments_used_unprotected_are_named",),
        18,
    ),
    Mutant(
        "test-records-are-called-public",
        CLAIMS,
        "test_is_public=job.data.test_is_public,",
        "test_is_public=True,",
        ("tests/trainer/release/test_markdown.py::test_private_test_records_are_declared",),
        17,
    ),
    Mutant(
        "the-page-is-silent-about-a-seed",
        MARKDOWN,
        "    if s.reproducible:\n",
        "    if False:\n",
        (f"{PAGE}::test_a_seeded_run_says_that_it_is_not_private",),
        18,
    ),
    Mutant(
        "the-page-is-silent-about-a-large-epsilon",
        MARKDOWN,
        "if s.claimed_epsilon > guarantee.NO_PRIVACY:",
        "if False:",
        (f"{PAGE}::test_epsilons_above_20_are_called_no_privacy",),
        18,
    ),
    Mutant(
        "fields-that-are-not-known-are-passed-over",
        "jaxdp/trainer/release/typed_json.py",
        "    for name in sorted(fact.keys() - set(names)):\n",
        "    for name in ():\n",
        ("tests/trainer/release/test_statement.py::test_what_is_not_known_is_refused_in_one_line",),
        20,
    ),
    Mutant(
        "a-statement-may-promise-too-much",
        "jaxdp/trainer/release/verification.py",
        "return bound * (1 - BELOW) - SMALLEST <= stated <= bound * (1 + ABOVE) + SMALLEST",
        "return stated <= bound * (1 + ABOVE) + SMALLEST",
        ("tests/trainer/release/test_verification.py::test_a_changed_number_is_found",),
        39,
    ),
)
