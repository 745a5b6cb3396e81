"""Bugs in who is sampled, in which unit, and with which random draws."""

from .mutant import Mutant

SAMPLING = "jaxdp/dpsgd/sampling.py"
PLAN = "jaxdp/dpsgd/plan.py"
FEEDING = "jaxdp/datasets/feeding.py"
SUPERVISED = "jaxdp/tasks/supervised.py"
TEST_VIEWS = "tests/tasks/test_views.py"
LAWS = "tests/dpsgd/test_sampling_laws.py"
UNITS = "tests/dpsgd/test_sampling_units.py"
TESTS = "tests/dpsgd/test_sampling.py"

MUTANTS = (
    Mutant(
        "as-many-records-in-every-step",
        SAMPLING,
        "count = self._counts.invert(int(high) << 64 | int(low))",
        "count = self._size",
        (f"{LAWS}::test_the_number_of_sampled_rows_is_binomial",),
        11,
    ),
    Mutant(
        "the-same-records-in-every-step",
        SAMPLING,
        "words = philox.stream(self._key, step)",
        "words = philox.stream(self._key, 0)",
        (f"{TESTS}::test_records_and_steps_are_independent",),
        11,
    ),
    Mutant(
        "the-first-records-are-sampled-more-often",
        "jaxdp/dpsgd/philox.py",
        "largest = np.uint64(2**64 - 2**64 % limit - 1)",
        "largest = np.uint64(2**64 - 1)",
        ("tests/dpsgd/test_philox.py::test_words_above_the_largest_multiple_are_drawn_again",),
        11,
    ),
    Mutant(
        "the-tails-of-a-sample-s-size-are-cut",
        "jaxdp/dpsgd/binomial.py",
        "TAIL = ONE >> 102",
        "TAIL = ONE >> 30",
        ("tests/dpsgd/test_binomial.py::test_the_distance_from_the_exact_law",),
        11,
    ),
    Mutant(
        "rows-that-stay-out-are-taken-for-those-that-are-in",
        SAMPLING,
        "return np.flatnonzero(marks if fewer == count else ~marks)",
        "return np.flatnonzero(marks)",
        (f"{LAWS}::test_distinct_rows_are_distinct_and_as_many_as_asked",),
        11,
    ),
    Mutant(
        "a-large-sample-is-cut-to-the-shape",
        SAMPLING,
        "    padded = rows * max(1, -(-len(indices) // rows))\n",
        "    padded, indices = rows, indices[:rows]\n",
        (f"{TESTS}::test_a_sample_above_the_capacity_gets_a_larger_shape",),
        7,
    ),
    Mutant(
        "a-full-unit-drops-records",
        SAMPLING,
        "    mask = np.arange(padded) < counts[:, None]\n",
        "    padded = rows\n    first = np.concatenate([np.arange(n) for n in counts]) < rows\n"
        "    order = order[first]\n    mask = np.arange(padded) < counts[:, None]\n",
        (f"{UNITS}::test_a_unit_above_the_capacity_gets_a_larger_shape",),
        7,
    ),
    Mutant(
        "an-empty-batch-is-no-step",
        "jaxdp/trainer/loop.py",
        "        payment.pay(step)\n",
        "        payment.pay(step)\n        if not np.any(mask):\n            continue\n",
        ("tests/trainer/test_loop.py::test_an_empty_batch_is_paid_for_and_taken",),
        7,
    ),
    Mutant(
        "a-record-s-unit-follows-from-its-place",
        SAMPLING,
        "philox.hashed(key, rows, step)",
        "philox.hashed(key, np.arange(len(rows)), step)",
        (f"{UNITS}::test_a_records_unit_is_its_own_affair",),
        4,
    ),
    Mutant(
        "units-are-the-same-at-every-step",
        SAMPLING,
        "philox.hashed(key, rows, step)",
        "philox.hashed(key, rows, 0)",
        (f"{UNITS}::test_units_are_uniform_and_drawn_anew_each_step",),
        4,
    ),
    Mutant(
        "units-and-samples-share-a-key",
        PLAN,
        'unit_philox = keys.philox_key(key, "units")',
        'unit_philox = keys.philox_key(key, "sampling")',
        (f"{UNITS}::test_units_and_samples_have_keys_of_their_own",),
        10,
    ),
    Mutant(
        "a-record-is-in-a-shuffled-epoch-twice",
        SAMPLING,
        "        if epoch != self._epoch:\n"
        "            self._order = Permutation(self._key, epoch, self._num_examples)\n",
        "        if True:\n"
        "            self._order = Permutation(self._key, step, self._num_examples)\n",
        (f"{TESTS}::test_shuffled_epochs_hold_everybody_once",),
        12,
    ),
    Mutant(
        "an-epoch-goes-on-in-another-order",
        PLAN,
        "        if start % epoch:\n",
        "        if False:\n",
        (f"{TESTS}::test_a_shuffled_epoch_goes_on_in_its_own_order_only",),
        12,
    ),
    Mutant(
        "a-second-run-is-not-told",
        PLAN,
        "if known and is_new and self.noise_multiplier != 0:",
        "if False:",
        ("tests/sharp_edges/test_batches.py::test_a_second_run_on_one_plan_warns",),
        26,
    ),
    Mutant(
        "every-process-draws-a-sample-of-its-own",
        PLAN,
        'key = keys.shared_key("plan.batches", about)',
        "key = jax.random.key(np.random.randint(2**30))",
        ("tests/test_processes.py::test_two_processes[not slow]",),
        26,
    ),
    Mutant(
        "augmentation-follows-from-the-place-in-the-batch",
        FEEDING,
        "keys = jax.vmap(lambda id_: jax.random.fold_in(step_key, id_))(ids.reshape(-1))",
        "places = jax.numpy.arange(ids.size)\n"
        "    keys = jax.vmap(lambda id_: jax.random.fold_in(step_key, id_))(places)",
        ("tests/datasets/test_feeding.py::test_a_record_s_key_depends_on_its_number_alone",),
        10,
    ),
    Mutant(
        "a-step-numbers-its-records-by-their-places",
        "jaxdp/trainer/step.py",
        "record_keys(batch.key, batch.ids)",
        "record_keys(batch.key, jnp.arange(batch.ids.size).reshape(batch.ids.shape))",
        ("tests/trainer/test_step.py::test_a_record_draws_the_same_wherever_it_is",),
        10,
    ),
    Mutant(
        "records-from-the-host-are-numbered-by-their-places",
        FEEDING,
        "_on_devices((fields, ids[rows], mask), len(sample[0]), dealer)",
        "_on_devices((fields, np.arange(rows.size, dtype=np.int32).reshape(rows.shape), mask), "
        "len(sample[0]), dealer)",
        (
            "tests/datasets/test_feeding.py::test_what_a_loss_draws_is_the_same_wherever_the_data_are",
        ),
        10,
    ),
    Mutant(
        "rows-that-can-t-be-used-stay-in-the-batch",
        FEEDING,
        "keep = mask & ~bad[np.minimum(indices, len(bad) - 1)]",
        "keep = mask",
        (
            "tests/datasets/test_feeding.py::test_what_can_t_be_used_is_taken_out_of_the_sample_that_was_drawn",
        ),
        35,
    ),
    Mutant(
        "views-are-the-same-for-every-record",
        SUPERVISED,
        "keys = jax.vmap(lambda view: jax.random.fold_in(key, view))(jnp.arange(views))",
        "keys = jax.random.split(jax.random.key(0), views)",
        (f"{TEST_VIEWS}::test_every_view_of_every_record_at_every_step_is_another",),
        43,
    ),
    Mutant(
        "views-of-a-record-are-all-the-same",
        SUPERVISED,
        "keys = jax.vmap(lambda view: jax.random.fold_in(key, view))(jnp.arange(views))",
        "keys = jax.vmap(lambda view: jax.random.fold_in(key, 0 * view))(jnp.arange(views))",
        (f"{TEST_VIEWS}::test_every_view_of_every_record_at_every_step_is_another",),
        43,
    ),
)
