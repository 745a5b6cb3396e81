"""Bugs in how a run goes on: steps that are repeated for free but are not the same."""

from .mutant import Mutant

RESUME = "jaxdp/trainer/run/resume.py"
SEGMENT = "jaxdp/trainer/run/segment.py"
FINGERPRINT = "jaxdp/trainer/run/fingerprint.py"
SAME_DATA = "jaxdp/trainer/run/same_data.py"
CHANGES = "tests/trainer/run/test_resume_changes.py"
FAILURES = "tests/trainer/run/test_resume_failures.py"

MUTANTS = (
    Mutant(
        "another-computation-repeats-steps-for-free",
        RESUME,
        "if fingerprint_digest(fingerprint) != current.fingerprint:",
        "if False:",
        (f"{CHANGES}::test_another_computation_gets_new_secrets",),
        15,
    ),
    Mutant(
        "a-new-segment-takes-the-old-secrets",
        RESUME,
        "    return draw_secrets(past.seed, past.segments + 1, init)\n",
        "    return past.secrets or draw_secrets(None, 1, init)\n",
        (f"{CHANGES}::test_another_computation_gets_new_secrets",),
        15,
    ),
    Mutant(
        "other-secrets-than-the-ledger-s-are-used",
        RESUME,
        "if saved.secrets is None or secrets_digest(saved.secrets) != ledger.segments[-1].secrets:",
        "if saved.secrets is None:",
        (f"{FAILURES}::test_other_secrets_than_the_ledger_s_are_refused",),
        15,
    ),
    Mutant(
        "a-checkpoint-may-be-ahead-of-its-ledger",
        RESUME,
        "if not (paid and ledger.holds(newest.position)):",
        "if False:",
        (f"{FAILURES}::test_a_checkpoint_ahead_of_its_ledger_is_refused",),
        15,
    ),
    Mutant(
        "another-ledger-of-as-many-steps-is-taken",
        RESUME,
        "if not (paid and ledger.holds(newest.position)):",
        "if not paid:",
        (f"{FAILURES}::test_a_ledger_begun_anew_is_refused",),
        15,
    ),
    Mutant(
        "the-digest-of-the-state-is-not-looked-at",
        RESUME,
        "history.step == current.start and state_digest(state) == current.state",
        "history.step == current.start",
        (f"{CHANGES}::test_a_state_that_a_segment_did_not_begin_with_is_not_free",),
        15,
    ),
    Mutant(
        "the-state-of-an-earlier-segment-is-free",
        RESUME,
        "self.newest is not None and self.newest.segment == len(self.ledger.segments)",
        "self.newest is not None",
        (f"{CHANGES}::test_only_the_newest_segment_s_own_state_is_free",),
        15,
    ),
    Mutant(
        "other-bits-of-a-step-are-free",
        RESUME,
        "if history.step < stop and not steps_repeat_exactly():",
        "if False:",
        (f"{CHANGES}::test_without_the_same_bits_charged_steps_are_not_repeated_for_free",),
        15,
    ),
    Mutant(
        "the-promise-of-a-run-may-change",
        RESUME,
        "        if now[name] != value:\n",
        "        if False:\n",
        (f"{CHANGES}::test_every_part_of_the_promise_is_fixed",),
        15,
    ),
    Mutant(
        "a-new-segment-has-the-whole-budget",
        RESUME,
        "return start + composition.affordable_steps(spent, more, budget.epsilon, budget.delta)",
        "return plan.steps",
        (f"{CHANGES}::test_a_new_segment_pays_again_and_stops_in_time",),
        15,
    ),
    Mutant(
        "a-seed-gives-every-segment-the-same-noise",
        SEGMENT,
        'key = keys.derived(jax.random.key(seed), f"segment {segment}")',
        'key = keys.derived(jax.random.key(seed), "segment")',
        (
            "tests/trainer/run/test_segment.py::test_a_seed_repeats_the_secrets_of_a_segment_and_no_other",
        ),
        15,
    ),
    Mutant(
        "a-new-segment-goes-on-in-the-old-epoch",
        "jaxdp/trainer/setup.py",
        "start=start - self.first_step)",
        "start=start)",
        (f"{CHANGES}::test_a_new_segment_begins_new_shuffled_epochs",),
        15,
    ),
    Mutant(
        "the-program-is-not-in-the-fingerprint",
        FINGERPRINT,
        '"program": _program_digest(program),',
        '"program": "",',
        ("tests/trainer/test_fit.py::test_another_computation_is_a_new_segment_that_is_paid_for",),
        32,
    ),
    Mutant(
        "the-code-of-the-engine-is-not-in-the-fingerprint",
        FINGERPRINT,
        '"code": _code_digest(),',
        '"code": "",',
        (
            "tests/trainer/run/test_fingerprint.py::test_a_changed_engine_file_is_another_computation",
        ),
        32,
    ),
    Mutant(
        "a-source-that-may-change-repeats-for-free",
        FINGERPRINT,
        '"source": None if _repeats(job.data) else secrets.token_hex(16)',
        '"source": None',
        (
            "tests/trainer/test_fit_sources.py::test_steps_repeat_for_free_only_where_rows_surely_do",
        ),
        36,
    ),
    Mutant(
        "rows-that-were-changed-in-place-are-the-same",
        SAME_DATA,
        'if one.fingerprint["data"] != data.private.digest():',
        "if False:",
        ("tests/trainer/test_fit_resume.py::test_rows_that_were_changed_in_place_are_refused",),
        22,
    ),
    Mutant(
        "other-rows-are-taken-for-those-of-the-run",
        SAME_DATA,
        "if not may_change and data.digests.get(use) != digest:",
        "if False:",
        ("tests/trainer/test_fit_resume.py::test_other_rows_behind_the_rules_are_refused",),
        22,
    ),
    Mutant(
        "the-command-remembers-the-records-of-the-last-segment-only",
        "jaxdp/datasets/loading.py",
        "    for before, known in earlier:\n",
        "    for before, known in earlier[-1:]:\n",
        ("tests/datasets/test_loading.py::test_the_records_of_every_segment_are_kept",),
        22,
    ),
    Mutant(
        "private-records-become-public-in-a-new-segment",
        "jaxdp/datasets/loading.py",
        "        _check_same_uses(before, config, opened.sizes)\n",
        "",
        (f"{CHANGES}::test_what_was_protected_stays_so",),
        22,
    ),
    Mutant(
        "records-may-be-exchanged",
        "jaxdp/datasets/loading.py",
        "        if known[name] != digests[name]:\n",
        "        if False:\n",
        (f"{CHANGES}::test_other_records_are_refused",),
        22,
    ),
)
