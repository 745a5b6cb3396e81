"""Bugs in what leaves a run: un-noised numbers, keys, and what tells of the machine."""

from .mutant import Mutant

SESSION = "jaxdp/trainer/session.py"
PARAMETERS = "jaxdp/trainer/release/parameters.py"
MODEL = "jaxdp/trainer/release/model.py"
STEP = "jaxdp/trainer/step.py"
SAME = (
    "tests/trainer/test_session_release.py::"
    "test_a_release_differs_in_its_parameters_only_whatever_records_and_keys"
)
MEASURING = "tests/trainer/test_measuring.py"
OPTIMIZER = "tests/trainer/test_step.py::test_the_optimizer_sees_the_released_gradient_only"

MUTANTS = (
    Mutant(
        "the-noise-key-is-beside-the-parameters",
        SESSION,
        "parameters.save_params(opened.folder, params, batch_stats, program)",
        "key = __import__('jax').random.key_data(run.saved.keys.noise)\n"
        "    parameters.save_params(opened.folder, {'p': params, 'k': key}, batch_stats, program)",
        ("tests/trainer/test_session.py::test_release_holds_parameters_and_statement_only",),
        17,
    ),
    Mutant(
        "the-noise-key-is-in-the-statement",
        SESSION,
        "    parameters.save_statement(opened.folder, statement)\n",
        "    from dataclasses import replace\n\n    from jax.random import key_data\n\n"
        "    told = (*statement.not_covered, str(key_data(run.saved.keys.noise)))\n"
        "    statement = replace(statement, not_covered=told)\n"
        "    parameters.save_statement(opened.folder, statement)\n",
        (SAME,),
        17,
    ),
    Mutant(
        "the-number-of-sampled-records-is-in-the-statement",
        SESSION,
        "    parameters.save_statement(opened.folder, statement)\n",
        "    from dataclasses import replace\n\n"
        '    lines = (opened.private / "metrics.jsonl").read_text().splitlines()\n'
        "    sampled = sum(json.loads(line)['examples'] for line in lines) / len(lines)\n"
        "    task = replace(statement.task, name=f'{statement.task.name}, {sampled:g} records')\n"
        "    statement = replace(statement, task=task)\n"
        "    parameters.save_statement(opened.folder, statement)\n",
        (SAME,),
        17,
    ),
    Mutant(
        "a-norm-is-beside-the-statement",
        SESSION,
        "    parameters.save_statement(opened.folder, statement)\n",
        '    (opened.folder / parameters.PARTIAL / "metrics.jsonl").write_bytes(\n'
        '        (opened.private / "metrics.jsonl").read_bytes()\n    )\n'
        "    parameters.save_statement(opened.folder, statement)\n",
        ("tests/trainer/test_session.py::test_release_holds_parameters_and_statement_only",),
        17,
    ),
    Mutant(
        "an-un-noised-number-is-in-the-file-of-the-parameters",
        SESSION,
        "parameters.save_params(opened.folder, params, batch_stats, program)",
        "line = (opened.private / 'metrics.jsonl').read_text().splitlines()[-1]\n"
        "    parameters.save_params(opened.folder, params, batch_stats, program)\n"
        "    from safetensors.numpy import load_file, save_file\n\n"
        "    file = opened.folder / parameters.PARTIAL / 'params.safetensors'\n"
        "    save_file(load_file(file), file, {'last step': line})",
        (SAME,),
        17,
    ),
    Mutant(
        "the-average-is-of-un-noised-updates",
        STEP,
        "updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)",
        "updates, _ = optimizer.update(gradient, optimizer_state, params)\n"
        "        sums = privatizer.sums(lazy, state.privatize)\n"
        "        mean = jax.tree.map(lambda s: s / privatizer.plan.divisor, sums.gradient)\n"
        "        _, optimizer_state = optimizer.update(mean, optimizer_state, params)",
        (OPTIMIZER,),
        3,
    ),
    Mutant(
        "the-update-is-of-the-un-noised-mean",
        STEP,
        "updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)",
        "sums = privatizer.sums(lazy, state.privatize)\n"
        "        mean = jax.tree.map(lambda s: s / privatizer.plan.divisor, sums.gradient)\n"
        "        updates, optimizer_state = optimizer.update(mean, optimizer_state, params)",
        (OPTIMIZER,),
        3,
    ),
    Mutant(
        "frozen-parameters-are-trained",
        "jaxdp/trainer/freezing.py",
        "return pick(False), pick(True)",
        "return params, pick(True)",
        ("tests/trainer/test_freezing.py::test_patterns_take_what_they_name_and_what_lies_below",),
    ),
    Mutant(
        "the-program-names-files-and-functions",
        MODEL,
        "without_locations(program).serialize()",
        "program.serialize()",
        ("tests/trainer/release/test_model.py::test_the_program_tells_no_path_and_no_name",),
        20,
    ),
    Mutant(
        "the-program-holds-private-rows",
        MODEL,
        "if any(map(private.hold, constants(jax.jit(predict).trace(*arguments).jaxpr))):",
        "if False:",
        (
            "tests/trainer/release/test_model.py::test_a_predict_that_holds_private_records_is_not_released",
        ),
        17,
    ),
    Mutant(
        "the-statement-tells-where-the-run-is",
        SESSION,
        "    parameters.save_statement(opened.folder, statement)\n",
        "    from dataclasses import replace\n\n"
        "    told = (*statement.not_covered, str(opened.folder))\n"
        "    statement = replace(statement, not_covered=told)\n"
        "    parameters.save_statement(opened.folder, statement)\n",
        (
            "tests/trainer/release/test_parameters.py::test_no_byte_of_a_release_tells_of_the_machine",
        ),
        20,
    ),
    Mutant(
        "callbacks-get-private-numbers",
        "jaxdp/trainer/progress.py",
        "callback(Progress(facts.step, steps, ledger))",
        "callback(facts)",
        ("tests/trainer/test_progress.py::test_callbacks_get_the_step_and_the_privacy_spent",),
        33,
    ),
    Mutant(
        "private-metrics-are-outside-of-private",
        "jaxdp/trainer/progress.py",
        '_event_writer(opened.private / "tensorboard")',
        '_event_writer(opened.folder / "tensorboard")',
        ("tests/trainer/test_fit.py::test_metrics_for_tensorboard_are_private_events",),
        33,
    ),
    Mutant(
        "everybody-may-read-private-files",
        "jaxdp/trainer/run/files.py",
        "os.O_CREAT | os.O_EXCL | os.O_WRONLY | BINARY, 0o600)",
        "os.O_CREAT | os.O_EXCL | os.O_WRONLY | BINARY, 0o644)",
        (
            "tests/trainer/run/test_segment.py::test_secrets_are_in_one_file_that_only_the_owner_reads",
        ),
        29,
    ),
    Mutant(
        "scores-of-private-records-are-exact",
        "jaxdp/trainer/release/confusion.py",
        "return Confusion(self.counts + np.array(drawn, np.int64))",
        "return Confusion(self.counts + 0 * np.array(drawn, np.int64))",
        ("tests/trainer/release/test_confusion.py::test_every_cell_has_noise_of_its_own",),
        31,
    ),
    Mutant(
        "an-exported-predict-may-hold-the-private-rows-where-there-are-canaries",
        "jaxdp/trainer/session.py",
        "program = export_task(run.job.task, params, batch_stats, run.job.data.real)",
        "program = export_task(run.job.task, params, batch_stats, run.job.data.private)",
        (
            "tests/trainer/test_canaries.py::test_a_predict_that_holds_the_private_rows_is_still_not_exported",
        ),
        17,
    ),
    Mutant(
        "the-measured-mean-has-no-noise",
        STEP,
        "        released, private, facts = _released(\n"
        "            privatizer, sums, state.privatize, start, measures=True\n        )\n",
        "        _, private, facts = _released(\n"
        "            privatizer, sums, state.privatize, start, measures=True\n        )\n"
        "        released = jax.tree.map(lambda s: s / privatizer.plan.divisor, sums.gradient)\n",
        (f"{MEASURING}::test_the_mean_has_the_noise_of_a_step",),
        44,
    ),
    Mutant(
        "measured-numbers-are-longer-than-is-paid-for",
        STEP,
        "        measured = jax.tree.map(lambda mean: mean / scale, released)\n",
        "        measured = jax.tree.map(lambda mean: 2 * mean / scale, released)\n",
        (f"{MEASURING}::test_a_record_moves_the_mean_by_at_most_its_share",),
        44,
    ),
    Mutant(
        "the-first-step-measures-with-noise-that-comes-again",
        STEP,
        "return state._replace(privatize=private, measured=measured), facts",
        "again = private._replace(privatize_step=0 * private.privatize_step)\n"
        "        return state._replace(privatize=again, measured=measured), facts",
        (f"{MEASURING}::test_the_first_step_measures_and_the_others_train",),
        44,
    ),
)
