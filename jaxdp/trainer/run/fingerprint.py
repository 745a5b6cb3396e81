"""The fingerprint of a segment's computation: everything that may change a bit of its results.

Steps that are repeated with the same secrets are free only if they give the same results. If the
fingerprint holds too much, budget is wasted, but no privacy is lost.
"""

import hashlib
import importlib.metadata
import importlib.resources
import json
import os
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ...datasets.dataset import Dataset
from ...datasets.digests import arrays_digest
from ...dpsgd import processes, sampling
from ...dpsgd.plan import Plan
from ...gradients.jax_internals import constants, runs_foreign_code, settings
from ...types import PyTree
from ..device import describe_device, describe_processor
from ..distributed import first
from ..job import Job

Fingerprint = dict[str, Any]
COMPUTING_PACKAGES = ("jax", "jaxlib", "numpy", "optax", "flax", "scipy")

# Settings of JAX that change no bit of a result: what is logged, shown and cached. All others,
# also those of a JAX to come, are in the fingerprint.
HARMLESS = frozenset(
    {
        "jax_captured_constants_report_frames",
        "jax_captured_constants_warn_bytes",
        "jax_check_proxy_envs",
        "jax_compilation_cache_dir",
        "jax_compilation_cache_include_metadata_in_key",
        "jax_compilation_cache_max_size",
        "jax_compiler_detailed_logging_min_ops",
        "jax_debug_log_modules",
        "jax_dump_ir_modes",
        "jax_dump_ir_to",
        "jax_enable_compilation_cache",
        "jax_explain_cache_misses",
        "jax_include_debug_info_in_dumps",
        "jax_include_full_tracebacks_in_locations",
        "jax_log_checkpoint_residuals",
        "jax_log_compiles",
        "jax_logging_level",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
        "jax_pprint_use_color",
        "jax_raise_persistent_cache_errors",
        "jax_traceback_filtering",
        "jax_traceback_in_locations_limit",
        "jax_tracer_error_num_traceback_frames",
    }
)

# Of environment variables that XLA and the libraries under it read.
PREFIXES = (
    *("JAX_", "XLA_", "LIBTPU_", "TF_XLA_", "PJRT_", "NPROC", "OMP_", "MKL_"),
    *("DNNL_", "ONEDNN_", "CUBLAS_", "CUDNN_", "CUDA_", "NCCL_", "NVIDIA_", "HIP_", "ROCR_"),
)

# Of the names of packages that hold compilers and libraries of kernels.
KERNELS = ("jax", "nvidia-", "libtpu")

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"

# Parts of the configuration that do not change any step.
NOT_COMPUTED = (
    *("name", "output", "numbered", "dry_run", "config_only", "resume", "checkpoint"),
    *("evaluations", "distributed"),
    "own",  # the program and the data stand for what the file defines
)


# Of the data's options: where records are, and how they are decoded. Their digest tells the result.
PLACES = ("file", "folder", "test_from", "schema", "labels", "dir", "tokens")


def make_fingerprint(
    job: Job, plan: Plan, program: jax.stages.Traced, frozen: PyTree
) -> Fingerprint:
    """Everything that decides the results of a step, given the secrets and the state before it.

    Args:
      job: what the run is made of.
      plan: its numbers.
      program: the train step, traced. Its text stands for the code of the task and the optimizer.
      frozen: the parameters that are not trained, which the program takes as arguments.
    """
    return json.loads(
        json.dumps(
            {
                "config": _settings(job),
                "code": _code_digest(),
                "program": _program_digest(program),
                "foreign code": _foreign_code(program),
                "frozen": arrays_digest([np.asarray(leaf) for leaf in jax.tree.leaves(frozen)]),
                "versions": {name: _version(name) for name in COMPUTING_PACKAGES} | _kernels(),
                "platform": jax.devices()[0].client.platform_version,
                "jax settings": {
                    name: str(value) for name, value in settings().items() if name not in HARMLESS
                },
                "environment": _environment(),
                "device": describe_device(),
                "processor": describe_processor(),
                "processes": jax.process_count(),
                "noise multiplier": plan.noise_multiplier,
                "delta": plan.delta,
                "clipping": repr(plan.clipping),
                "data": job.data.private.digest(),
                "canaries": None if job.data.canaries is None else job.data.canaries.digest,
                "public data": None if job.data.public is None else job.data.public.digest(),
                "splits": dict(job.data.digests),
                "source": None if _repeats(job.data) else secrets.token_hex(16),
                "sampler": [
                    sampling.VERSION,
                    plan.sampling,
                    plan.expected_batch_size,
                    plan.num_examples,
                    plan.num_units,
                    plan.capacity,
                ],
            }
        )
    )


def _repeats(data: Dataset) -> bool:
    """Whether reading the records again surely gives the same bits."""
    return all(r is None or r.repeats for r in (data.private, data.public))


def _settings(job: Job) -> dict[str, Any]:
    """The settings by name, so that a message can tell which of them changed."""
    if job.config is not None:
        kept = {name: v for name, v in asdict(job.config).items() if name not in NOT_COMPUTED}
        kept["data"] = {name: v for name, v in kept["data"].items() if name not in PLACES}
        return kept
    kept = {name: v for name, v in asdict(job.options).items() if name not in NOT_COMPUTED}
    options = job.clipping_options
    return kept | {"clipping": None if options is None else asdict(options)}


def _program_digest(program: jax.stages.Traced) -> str:
    """A checksum of a program: of its text without places in files, and of its constants.

    Its text has the constants, too, but another version of JAX may pass them as arguments.
    """
    total = hashlib.sha256(program.lower().as_text(debug_info=False).encode())
    total.update(arrays_digest(list(constants(program.jaxpr))).encode())
    return total.hexdigest()


def _foreign_code(program: jax.stages.Traced) -> str | None:
    """None; or if the step calls the host or a library, which its text only names: never the same.

    Losses that do so are refused, but an optimizer may.
    """
    return secrets.token_hex(16) if runs_foreign_code(program.jaxpr) else None


def steps_repeat_exactly() -> bool:
    """Whether a step gives the same bits every time that it is run on this device.

    A GPU adds up in the order in which its threads finish, and another compilation may choose other
    kernels, unless a flag of XLA forbids both. Several GPUs and several processes add up as their
    wires are, which no fingerprint tells. A CPU gives the same bits, if its model and number of
    cores are the same: these are in the fingerprint.
    """
    if jax.process_count() > 1:
        return False
    platforms = {device.platform for device in jax.devices()}
    name = DETERMINISTIC.partition("=")[0]
    flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if f.partition("=")[0] == name]
    # The last one counts.
    one_gpu = platforms == {"gpu"} and jax.device_count() == 1
    return platforms == {"cpu"} or (one_gpu and flags[-1:] == [DETERMINISTIC])


def fingerprint_digest(fingerprint: Fingerprint) -> str:
    """A checksum of a fingerprint, for the ledger."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()


# What may differ between the processes of one run: which devices each sees, and what can't repeat.
OF_A_PROCESS = frozenset({"environment", "jax settings", "source", "foreign code"})


def check_same_computation(fingerprint: Fingerprint) -> None:
    """Refuses to begin where processes would compute different things. As `check_same_facts`."""
    common = {name: fact for name, fact in fingerprint.items() if name not in OF_A_PROCESS}
    check_same_facts("the computation", common)


def check_same_facts(what: str, facts: dict[str, Any]) -> None:
    """Refuses to go on where processes differ in facts that can be JSON.

    Raises:
      ValueError: in all processes, with the names of what differs.
    """
    if not processes.several():
        return
    own = json.loads(json.dumps(facts))
    changed = changes(first(what, lambda: own), own)
    problem = (
        f"process {jax.process_index()} and process 0 differ in {what} ({changed}): start the same "
        "program with the same options and data in all processes, on machines of one kind with the "
        "same versions"
    )
    processes.check_all(what, problem if changed else None)


def changes(before: Fingerprint, now: Fingerprint) -> str:
    """The names of all parts that differ, as text."""
    parts = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            parts += [f"{name}.{key}" for key in _differing(old, new)]
        elif old != new:
            parts.append(name)
    return ", ".join(parts)


def _environment() -> dict[str, str]:
    """The environment variables that may change a result, with the contents of a file of flags."""
    found = {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(PREFIXES) and name.lower() not in HARMLESS
    }
    flags = found.get("XLA_FLAGS", "")
    if flags and not flags.startswith("-"):  # XLA takes it for the name of a file
        try:
            found["file of XLA_FLAGS"] = hashlib.sha256(Path(flags).read_bytes()).hexdigest()
        except OSError as error:
            found["file of XLA_FLAGS"] = str(error)
    return found


def _code_digest() -> str:
    total = hashlib.sha256()
    package = importlib.resources.files("jaxdp")  # the whole package, wherever this file is
    assert isinstance(package, Path)
    for path in sorted(package.rglob("*.py")):
        total.update(f"{path.relative_to(package)}\n".encode() + path.read_bytes())
    return total.hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _kernels() -> dict[str, str]:
    """The versions of all packages that bring compilers or kernels."""
    names = [(d.metadata["Name"] or "").lower() for d in importlib.metadata.distributions()]
    return {name: _version(name) for name in sorted(set(names)) if name.startswith(KERNELS)}


def _differing(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    names = []
    for key in sorted(old.keys() | new.keys()):
        before, now = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            names += _differing(before, now, f"{prefix}{key}.")
        elif before != now:
            names.append(f"{prefix}{key}")
    return names
