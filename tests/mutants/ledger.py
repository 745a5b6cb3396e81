"""Bugs in what is paid: charges that are late, lost or forgotten."""

from .mutant import Mutant

LEDGER = "jaxdp/trainer/run/ledger.py"
LINES = "jaxdp/trainer/run/lines.py"
SPENDING = "jaxdp/trainer/spending.py"
SCORES = "jaxdp/trainer/release/score_ledger.py"
TESTS = "tests/trainer/run/test_ledger.py"
SPENT = "tests/trainer/test_spending.py"

MUTANTS = (
    Mutant(
        "a-charge-may-be-lost-by-a-power-failure",
        LINES,
        "            os.fsync(self._descriptor)\n        except OSError:\n",
        "        except OSError:\n",
        (f"{TESTS}::test_a_charge_is_synced_before_it_returns",),
        15,
    ),
    Mutant(
        "a-step-is-paid-for-after-it-ran",
        "jaxdp/trainer/loop.py",
        "        payment.pay(step)\n"
        "        state = refresh(step, state)\n"
        "        state, facts = train_step(state, batch, mask)\n",
        "        state = refresh(step, state)\n"
        "        state, facts = train_step(state, batch, mask)\n"
        "        payment.pay(step)\n",
        ("tests/trainer/test_loop.py::test_a_step_counts_before_it_is_dispatched",),
        15,
    ),
    Mutant(
        "only-the-newest-segment-counts",
        LEDGER,
        "            for segment, stop in zip(self.segments, self._stops, strict=True)\n",
        "            for segment, stop in zip(self.segments[-1:], self._stops[-1:], strict=True)\n",
        (f"{TESTS}::test_a_new_segment_pays_for_its_steps_again",),
        15,
    ),
    Mutant(
        "a-changed-line-is-read",
        LINES,
        'if check != _check(self._checks[-1] if self._checks else "", text):',
        "if False:",
        (f"{TESTS}::test_a_damaged_line_is_named",),
        15,
    ),
    Mutant(
        "a-checksum-is-of-its-own-line-alone",
        LINES,
        'return hashlib.sha256(f"{before}\\n{text}".encode()).hexdigest()[:CHECK_DIGITS]',
        "return hashlib.sha256(text.encode()).hexdigest()[:CHECK_DIGITS]",
        (f"{TESTS}::test_a_position_is_of_all_lines_before_it",),
        15,
    ),
    Mutant(
        "charges-may-leave-gaps",
        LEDGER,
        "if not self.segments[-1].start <= first <= stop or last < first:",
        "if last < first:",
        (f"{TESTS}::test_steps_are_charged_in_order_without_gaps",),
        15,
    ),
    Mutant(
        "a-sealed-segment-can-be-charged",
        LEDGER,
        "        if self.is_sealed:\n            raise ValueError(\n"
        '                f"the secrets of segment',
        "        if False:\n            raise ValueError(\n"
        '                f"the secrets of segment',
        (f"{TESTS}::test_a_sealed_segment_can_be_charged_no_more",),
        15,
    ),
    Mutant(
        "a-replaced-ledger-is-written-to",
        LINES,
        "if not os.path.samestat(there, mine) or there.st_size != self._size:",
        "if False:",
        (f"{TESTS}::test_nothing_is_written_to_a_deleted_or_replaced_ledger",),
        15,
    ),
    Mutant(
        "steps-go-on-beyond-the-budget",
        LEDGER,
        "        if step >= self.end:\n",
        "        if False:\n",
        (f"{TESTS}::test_every_step_is_paid_for_and_none_beyond_the_end",),
        15,
    ),
    Mutant(
        "the-largest-delta-of-several-runs-is-told",
        SPENDING,
        "delta = min(one.delta for one in spent)",
        "delta = max(one.delta for one in spent)",
        (f"{SPENT}::test_the_smallest_delta_is_told_so_that_no_run_has_a_larger_epsilon_alone",),
        30,
    ),
    Mutant(
        "a-seeded-run-adds-a-finite-epsilon",
        SPENDING,
        "composition.epsilon_of_all(mechanisms, delta) if private else math.inf",
        "composition.epsilon_of_all(mechanisms, delta)",
        (f"{SPENT}::test_a_seeded_run_makes_the_sum_infinite",),
        30,
    ),
    Mutant(
        "copies-that-both-went-on-share-their-noise",
        SPENDING,
        "if private and len(secrets) == 2 and",
        "if False and",
        (f"{SPENT}::test_copies_of_a_run_that_both_went_on_have_no_epsilon",),
        30,
    ),
    Mutant(
        "an-empty-run-covers-another",
        SPENDING,
        "return bool(other.segments) and one.ledger.holds(other.ledger.position)",
        "return one.ledger.holds(other.ledger.position)",
        (f"{SPENT}::test_a_run_that_never_began_is_no_copy_of_another",),
        30,
    ),
    Mutant(
        "the-first-release-of-a-run-counts",
        SPENDING,
        "return max((_of_release(path, one) for one in found), key=_steps)",
        "return min((_of_release(path, one) for one in found), key=_steps)",
        (f"{SPENT}::test_of_a_run_without_private_files_the_last_release_counts",),
        30,
    ),
    Mutant(
        "a-release-may-be-ahead-of-its-ledger",
        "jaxdp/trainer/run/evidence.py",
        '("the releases", max(map(_released, releases(folder)), default=0), ledger.steps),',
        '("the releases", 0, ledger.steps),',
        (f"{SPENT}::test_a_ledger_behind_its_release_is_refused",),
        30,
    ),
    Mutant(
        "the-budget-of-the-scores-is-spent-again",
        SCORES,
        "        if epsilon > self.left:\n",
        "        if epsilon > self.budget:\n",
        ("tests/trainer/release/test_score_ledger.py::test_nothing_is_charged_beyond_the_budget",),
        31,
    ),
    Mutant(
        "noisy-scores-are-paid-for-after-they-are-drawn",
        "jaxdp/trainer/release/evaluation.py",
        "            book.charge(pay.epsilon)  # before the noise is drawn\n"
        "            return exact.with_noise(pay.epsilon), _paid(book, pay, classes)\n",
        "            found = exact.with_noise(pay.epsilon)\n"
        "            book.charge(pay.epsilon)\n"
        "            return found, _paid(book, pay, classes)\n",
        (
            "tests/commands/test_evaluate_confusion.py::test_the_ledger_has_paid_before_the_noise_is_drawn",
        ),
        31,
    ),
    Mutant(
        "a-checkpoint-may-be-of-a-segment-that-the-ledger-lacks",
        "jaxdp/trainer/run/evidence.py",
        "if position is not None and not ledger.holds(position):",
        "if False and position is not None and not ledger.holds(position):",
        (
            "tests/trainer/run/test_damaged_files.py::test_a_checkpoint_shows_charges_of_a_segment_that_took_steps_again",
        ),
        15,
    ),
)
