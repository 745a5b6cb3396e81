"""Bugs in steps on several devices, and in several processes."""

from .mutant import Mutant

EIGHT_DEVICES = ("tests/test_devices.py::test_eight_devices[not slow]",)
TWO_PROCESSES = ("tests/test_processes.py::test_two_processes[not slow]",)

MUTANTS = (
    Mutant(
        "devices-that-share-parameters-are-not-added-to-the-others",
        "jaxdp/dpsgd/privatizer.py",
        "return jax.lax.psum(total, axes) if axes else total",
        "return total",
        EIGHT_DEVICES,
        45,
    ),
    Mutant(
        "sums-are-scattered-along-axes-that-are-not-counted",
        "jaxdp/dpsgd/privatizer.py",
        "        check_scattered(scattered, axes)\n",
        "",
        EIGHT_DEVICES,
        45,
    ),
    Mutant(
        "each-device-clips-its-own-part-of-a-gradient",
        "jaxdp/dpsgd/privatizer.py",
        "if grads.split_axes:",
        "if False:",
        EIGHT_DEVICES,
        45,
    ),
    Mutant(
        "each-process-draws-a-secret-key-of-its-own",
        "jaxdp/dpsgd/keys.py",
        'processes.from_first(f"the key of {use}", drawn_words)',
        "drawn_words()",
        TWO_PROCESSES,
        26,
    ),
    Mutant(
        "noise-keys-of-several-processes-are-not-compared",
        "jaxdp/dpsgd/privatizer.py",
        '            keys.check_same_key("privatize", self.key, about)\n',
        "",
        TWO_PROCESSES,
        26,
    ),
    Mutant(
        "a-secret-stays-with-the-coordinator",
        "jaxdp/dpsgd/processes.py",
        "        client.key_value_delete(old)\n",
        "        pass\n",
        TWO_PROCESSES,
        46,
    ),
    Mutant(
        "one-message-is-taken-for-another",
        "jaxdp/dpsgd/processes.py",
        "    if sent != what:\n",
        "    if False:\n",
        TWO_PROCESSES,
        46,
    ),
    Mutant(
        "a-process-does-not-wait-until-a-step-is-paid-for",
        "jaxdp/trainer/run/ledger.py",
        "if step >= self._paid:\n            self._paid = first(",
        "if self._ledger is not None and step >= self._paid:\n            self._paid = first(",
        ("tests/test_processes.py::test_no_process_takes_a_step_before_it_is_told",),
        46,
    ),
    Mutant(
        "others-are-told-of-a-step-that-is-not-charged",
        "jaxdp/trainer/run/ledger.py",
        "        return stop\n",
        "        return stop + 1\n",
        ("tests/test_processes.py::test_all_are_told_of_a_step_when_the_disk_has_it",),
        46,
    ),
    Mutant(
        "processes-may-compute-different-things",
        "jaxdp/trainer/setup.py",
        "        check_same_computation(fingerprint)\n",
        "",
        (
            "tests/test_processes.py::"
            "test_processes_with_other_data_are_refused_before_anything_is_written",
        ),
        46,
    ),
    Mutant(
        "steps-of-several-processes-repeat-for-free",
        "jaxdp/trainer/run/fingerprint.py",
        "    if jax.process_count() > 1:\n        return False\n",
        "",
        ("tests/test_processes.py::test_steps_of_several_processes_are_not_free",),
        46,
    ),
    Mutant(
        "states-of-several-processes-are-not-compared",
        "jaxdp/dpsgd/devices.py",
        "        _check_same([leaf for leaf in jax.tree.leaves(tree) if not is_placed(leaf)], "
        '"spread")\n',
        "",
        TWO_PROCESSES,
        26,
    ),
    Mutant(
        "plans-of-several-processes-are-not-compared",
        "jaxdp/dpsgd/keys.py",
        "bits + about.encode()",
        "bits",
        TWO_PROCESSES,
        26,
    ),
    Mutant(
        "keys-of-two-threads-may-be-swapped",
        "jaxdp/dpsgd/processes.py",
        "    if not speaks():\n",
        "    if False:\n",
        TWO_PROCESSES,
        26,
    ),
)
