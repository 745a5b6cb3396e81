"""Bugs in how a run's keys are destroyed."""

from .mutant import Mutant

SEAL = "jaxdp/trainer/run/seal.py"
TESTS = "tests/trainer/run/test_seal.py"

MUTANTS = (
    Mutant(
        "keys-stay-in-the-file-of-the-segment",
        SEAL,
        'if name != "secrets"}',
        "}",
        (f"{TESTS}::test_no_key_is_left_in_any_file",),
        29,
    ),
    Mutant(
        "keys-are-not-overwritten",
        SEAL,
        "    _overwrite(file.path, blank.encode())\n",
        "",
        (f"{TESTS}::test_keys_are_overwritten_in_place_before_the_file_is_replaced",),
        29,
    ),
    Mutant(
        "keys-of-a-half-written-segment-stay",
        SEAL,
        'half_written = sorted(path.parent.glob(f"segment-*.json{PARTIAL}"))',
        "half_written = []",
        (f"{TESTS}::test_secrets_that_never_reached_the_ledger_are_destroyed_too",),
        29,
    ),
    Mutant(
        "the-statement-says-it-first",
        SEAL,
        "        for file in secret_files:\n            _destroy(file)\n"
        "        for release in statements:\n            say_destroyed(release)\n",
        "        for release in statements:\n            say_destroyed(release)\n"
        "        for file in secret_files:\n            _destroy(file)\n",
        (
            f"{TESTS}::test_a_crash_at_any_write_leaves_a_run_that_can_be_sealed_and_is_never_half_open",
        ),
        29,
    ),
    Mutant(
        "an-older-release-says-that-keys-are-kept",
        SEAL,
        "statements = [release for release in releases(folder) if not says_destroyed(release)]",
        "statements = [r for r in releases(folder)[:1] if not says_destroyed(r)]",
        (f"{TESTS}::test_a_release_that_was_set_aside_says_so_too",),
        29,
    ),
    Mutant(
        "secrets-that-are-put-back-are-used",
        "jaxdp/trainer/run/resume.py",
        "        return dataclasses.replace(saved, secrets=None)\n",
        "        return saved\n",
        (f"{TESTS}::test_secrets_that_are_put_back_are_not_used",),
        29,
    ),
    Mutant(
        "keys-from-a-seed-are-said-to-be-destroyed",
        SEAL,
        "        if seed is not None:\n",
        "        if False:\n",
        (f"{TESTS}::test_what_was_made_from_a_seed_cannot_be_destroyed",),
        29,
    ),
)
