"""Bugs in which records are private, and in what is taken from them."""

from .mutant import Mutant

TABLES = "jaxdp/datasets/tables.py"
DATASET = "jaxdp/datasets/dataset.py"
DECODING = "jaxdp/datasets/decoding.py"
FEATURES = "jaxdp/datasets/features.py"
TEST_FEATURES = "tests/datasets/test_features.py"
TEST_TABLES = "tests/datasets/test_tables.py"

MUTANTS = (
    Mutant(
        "uses-may-overlap",
        "jaxdp/datasets/splits.py",
        "if part.name == before.name and shared > 0:",
        "if part.name == before.name and shared > 1000:",
        ("tests/datasets/test_splits.py::test_overlapping_uses_are_refused",),
        22,
    ),
    Mutant(
        "public-rows-may-be-views-of-private-ones",
        DATASET,
        'if use != "private" and (same or rows.has_rows_of(self.private)):',
        "if False:",
        ("tests/datasets/test_records.py::test_rows_with_two_uses_are_refused",),
        22,
    ),
    Mutant(
        "rows-of-a-schema-may-be-private",
        TABLES,
        "    if schema.public is None:\n        return\n",
        "    if schema.public is None or True:\n        return\n",
        (f"{TEST_TABLES}::test_rows_that_the_schema_was_made_of_are_not_private",),
        34,
    ),
    Mutant(
        "rows-of-a-schema-are-counted-in-their-split",
        TABLES,
        "        taken = rows[part.name][part.start : part.stop]\n",
        "        taken = np.arange(part.start, part.stop)\n",
        (f"{TEST_TABLES}::test_rows_of_a_split_that_the_schema_was_made_of_are_not_private",),
        34,
    ),
    Mutant(
        "a-schema-is-made-of-all-rows",
        "jaxdp/datasets/schema_from_rows.py",
        "span = slice(chosen.start, chosen.stop)",
        "span = slice(None)",
        ("tests/commands/test_data_schema.py::test_nothing_is_taken_from_the_other_rows",),
        34,
    ),
    Mutant(
        "public-norms-are-measured-on-private-records",
        "jaxdp/trainer/setup.py",
        "settings, public = job.clipping_options, job.data.public",
        "settings, public = job.clipping_options, job.data.private",
        (
            "tests/trainer/test_public_norms.py::test_private_records_have_no_path_into_the_clipping_norms",
        ),
        34,
    ),
    Mutant(
        "bad-rows-are-forgotten",
        DATASET,
        "            marked if marked.any() else None,\n",
        "            None,\n",
        ("tests/trainer/test_own_files.py::test_a_bad_row_keeps_its_number_and_is_in_no_batch",),
        35,
    ),
    Mutant(
        "a-file-that-changes-meanwhile-is-kept",
        DECODING,
        "    if files != _stats(reading):",
        "    if False:",
        (
            "tests/datasets/test_decoding.py::test_what_was_decoded_from_a_changing_file_is_not_kept",
        ),
        36,
    ),
    Mutant(
        "a-mapped-file-may-be-written-to",
        "jaxdp/datasets/rows.py",
        "if now != before and now[0] == before[0]:",
        "if False:",
        ("tests/datasets/test_rows.py::test_mapped_files_are_records_and_their_changes_are_seen",),
        36,
    ),
    Mutant(
        "everybody-may-read-the-cache",
        "jaxdp/datasets/cache.py",
        "0o600",
        "0o644",
        ("tests/datasets/test_cache.py::test_only_the_owner_may_read_it",),
        37,
    ),
    Mutant(
        "images-that-are-kept-are-not-told-with-features",
        FEATURES,
        "cached = made.cached or split.cached",
        "cached = made.cached",
        (f"{TEST_FEATURES}::test_images_that_are_kept_are_told_where_features_are_not",),
        37,
    ),
    Mutant(
        "the-cache-keeps-records-for-ever",
        "jaxdp/datasets/cache.py",
        "if time.time() - _last_used(entry) > days * 86400:",
        "if False:",
        ("tests/datasets/test_cache.py::test_what_was_not_used_for_long_is_deleted",),
        37,
    ),
    Mutant(
        "test-records-of-all-kinds-are-public-by-themselves",
        "jaxdp/datasets/loading.py",
        "return opened.published and private.isdisjoint(test)",
        "return True",
        (
            "tests/datasets/test_loading.py::test_only_the_test_split_of_a_published_set_is_public_by_itself",
        ),
        38,
    ),
    Mutant(
        "features-are-scaled-by-those-of-other-records",
        FEATURES,
        "        features = np.asarray(compute(filled))[: len(part)].astype(np.float16)\n",
        "        features = np.asarray(compute(filled))[: len(part)]\n"
        "        features = (features / np.abs(features).max()).astype(np.float16)\n",
        (f"{TEST_FEATURES}::test_no_bit_depends_on_other_records_or_on_the_place",),
        42,
    ),
    Mutant(
        "features-are-those-of-the-record-before",
        FEATURES,
        "jax.lax.map(of_one, images)",
        "jax.lax.map(of_one, jax.numpy.roll(images, 1, 0))",
        (f"{TEST_FEATURES}::test_no_bit_depends_on_other_records_or_on_the_place",),
        42,
    ),
)
