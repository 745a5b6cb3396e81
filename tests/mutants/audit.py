"""Bugs in the audit: bounds that are too high, releases that are not fresh, canaries that hide."""

from .mutant import Mutant

STEP = "tests/audit/test_step.py"
CLOSE = f"{STEP}::test_an_honest_step_stays_within_its_claim_and_comes_close"

MUTANTS = (
    Mutant(
        "a-limit-on-errors-is-too-low",
        "jaxdp/audit/bounds.py",
        "upper = stats.beta.isf(significance, counted + 1, np.maximum(trials - counted, 1))",
        "upper = stats.beta.isf(significance, counted + 0.5, np.maximum(trials - counted, 1))",
        ("tests/audit/test_bounds.py::test_mu_is_too_high_as_rarely_as_is_said",),
        40,
    ),
    Mutant(
        "both-limits-take-the-whole-chance-to-be-wrong",
        "jaxdp/audit/bounds.py",
        "limit = lambda counts: clopper_pearson(counts, errors.trials, significance / 2)[1]",
        "limit = lambda counts: clopper_pearson(counts, errors.trials, significance)[1]",
        ("tests/audit/test_bounds.py::test_epsilon_pays_for_both_limits",),
        40,
    ),
    Mutant(
        "errors-are-counted-in-half-of-the-releases",
        "jaxdp/audit/bounds.py",
        "most = clopper_pearson(wrong, 2 * errors.trials, significance)[1]",
        "most = clopper_pearson(wrong, 4 * errors.trials, significance)[1]",
        ("tests/audit/test_bounds.py::test_mu_is_too_high_as_rarely_as_is_said",),
        40,
    ),
    Mutant(
        "canaries-don-t-share-the-chance-to-be-wrong",
        "jaxdp/audit/step.py",
        "significance = (1 - confidence) / (2 * len(chosen))",
        "significance = (1 - confidence) / 2",
        (f"{STEP}::test_every_canary_takes_its_share_of_the_chance_to_be_wrong",),
        40,
    ),
    Mutant(
        "the-claim-of-an-audit-is-too-high",
        "jaxdp/audit/step.py",
        "claimed_mu=1 / z,",
        "claimed_mu=2 / z,",
        (CLOSE,),
        40,
    ),
    Mutant(
        "releases-with-and-without-the-canary-have-equal-keys",
        "jaxdp/audit/harness.py",
        "words = random.integers(0, 2**32, shape, dtype=np.uint32)",
        "words = np.random.default_rng(0).integers(0, 2**32, shape, dtype=np.uint32)",
        (f"{STEP}::test_a_seed_repeats_an_audit_and_without_it_keys_are_fresh",),
        40,
    ),
    Mutant(
        "a-release-that-is-not-finite-hides",
        "jaxdp/audit/attackers.py",
        "np.where(finite[:, None], rows, 0) @ self._weights, np.inf)",
        "np.where(finite[:, None], rows, 0) @ self._weights, 0.0)",
        (f"{STEP}::test_a_row_that_makes_the_release_nan_is_found",),
        40,
    ),
    Mutant(
        "the-second-release-is-not-looked-at",
        "jaxdp/audit/harness.py",
        "for given in (first, later)[: self._steps]:",
        "for given in (first, later)[:1]:",
        (f"{STEP}::test_a_planted_bug_is_found",),
        40,
    ),
    Mutant(
        "padding-is-not-made-of-the-canary",
        "jaxdp/audit/canaries.py",
        "    order[real:] = source  #",
        "    #",
        ("tests/audit/test_canaries.py::test_padding_is_made_of_the_canary",),
        40,
    ),
    Mutant(
        "the-neighbour-has-the-canary-s-place-still",
        "jaxdp/audit/canaries.py",
        "        less[(0, real - 1) if len(shape) == 2 else real - 1] = False\n",
        "",
        ("tests/audit/test_canaries.py::test_neighbours_differ_by_one_record",),
        40,
    ),
    Mutant(
        "left-out-canaries-take-part",
        "jaxdp/datasets/canaries.py",
        "range(count)), ids, ~coins)",
        "range(count)), ids, ~coins & False)",
        ("tests/datasets/test_canaries.py::test_excluded_canaries_are_in_no_batch",),
        41,
    ),
    Mutant(
        "canaries-are-made-of-private-records",
        "jaxdp/datasets/canaries.py",
        "    if public is None and data.test_is_public:\n        public = data.test\n",
        "    if public is None:\n        public = data.test\n",
        ("tests/datasets/test_canaries.py::test_test_records_are_taken_only_if_they_are_public",),
        41,
    ),
)
