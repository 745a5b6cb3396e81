"""Everything that JAX does not promise to keep: the one module to change when JAX moves.

No other module of jaxdp imports `jax._src` or `jax.extend`. What is here works on the parts of
jaxprs that JAX 0.10 and the newest JAX share.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.export
import numpy as np
from jax._src import (
    callback,
    clusters,
    config,
    custom_batching,
    debugging,
    distributed,
    ffi,
    source_info_util,
)
from jax._src import core as jax_core
from jax._src.interpreters import batching, mlir
from jax._src.interpreters.partial_eval import dce_jaxpr
from jax._src.lax import lax as lax_internal
from jax._src.lax import parallel
from jax._src.named_sharding import UNSPECIFIED
from jax._src.state import primitives as state_primitives
from jax.extend.backend import get_backend
from jax.extend.core import Literal as Literal
from jax.extend.core import Primitive, mapped_aval
from jax.extend.core import jaxprs_in_params as jaxprs_in_params
from jax.extend.core import primitives as primitives
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo


def _primitives(*modules: ModuleType) -> frozenset:
    return frozenset(
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, Primitive)
    )


PVARY = jax_core.pvary_p

SPLIT = lax_internal.split_p
STACK = lax_internal.stack_p
UNSTACK = lax_internal.unstack_p
RAGGED_DOT = lax_internal.ragged_dot_general_p

# All that exchanges values between the elements of a mapped axis.
COLLECTIVES = _primitives(parallel) - {primitives.axis_index_p, PVARY}

CUSTOM_VMAP = frozenset({custom_batching.custom_vmap_p})

CALLBACKS = _primitives(callback, debugging)

# Random numbers of the backend's own: under vmap there is one draw for all.
RNG_OF_BACKENDS = frozenset({primitives.rng_bit_generator_p, primitives.rng_uniform_p})

FOREIGN = _primitives(ffi)

REFS = _primitives(state_primitives) | {jax_core.ref_p}


def own_vmap_rule(primitive: Any) -> str:
    """The module with a primitive's rule for `vmap`; "" if it is JAX's, or there is none."""
    rule: Any = batching.fancy_primitive_batchers.get(primitive)
    code = getattr(rule, "__code__", None)
    if code is not None and "batcher" in code.co_freevars:  # JAX wraps rules of the usual kind
        rule = rule.__closure__[code.co_freevars.index("batcher")].cell_contents
    while isinstance(rule, functools.partial):
        rule = rule.func
    module = getattr(rule, "__module__", "")
    return "" if rule is None or module.split(".")[0] == "jax" else module


def live_equations(jaxpr: Any, used: Sequence[bool] | None = None) -> tuple[list[Any], list[bool]]:
    """The equations, however deep inside, that have an effect or whose results are used.

    Args:
      jaxpr: a jaxpr.
      used: which of its results are; None: all.

    Returns:
      The equations, and which of the arguments they use.
    """
    jaxpr, _ = open_jaxpr(jaxpr)
    used = [True] * len(jaxpr.outvars) if used is None else used
    wanted = {atom for atom, use in zip(jaxpr.outvars, used, strict=True) if use and is_var(atom)}
    found: list[list[Any]] = []
    for eqn in reversed(jaxpr.eqns):
        results = [var in wanted for var in eqn.outvars]
        if not any(results) and not eqn.effects:
            continue
        operands = [True] * len(eqn.invars)
        inside: list[Any] = []
        name = _CALLED.get(eqn.primitive)
        if name is not None:  # a call may leave some of its operands unused
            inside, operands = live_equations(eqn.params[name], results)
        else:
            for inner in jaxprs_in_params(eqn.params):
                inside += live_equations(inner)[0]
        found.append([eqn, *inside])
        wanted |= {v for v, use in zip(eqn.invars, operands, strict=True) if use and is_var(v)}
    in_order = [eqn for group in reversed(found) for eqn in group]
    return in_order, [var in wanted for var in jaxpr.invars]


_CALLED = {primitives.jit_p: "jaxpr", primitives.custom_jvp_call_p: "call_jaxpr"}


def is_var(atom: Any) -> bool:
    return not isinstance(atom, Literal)


def settings() -> dict[str, Any]:
    """Every setting of JAX by its name, as it is here and now."""
    values = jax.config.values
    return {name: getattr(jax.config, name, value) for name, value in values.items()}


def is_traced() -> bool:
    """Whether this code runs under jit, vmap or another transformation."""
    return not jax_core.trace_state_clean()


def is_vmapped() -> bool:
    """Whether the innermost transformation around this code is vmap."""
    return isinstance(jax_core.trace_ctx.trace, batching.BatchTrace)


def varying_axes(tree: Any) -> frozenset:
    """The mesh axes of a surrounding `shard_map` along which any of the arrays differs."""
    axes: set = set()
    for leaf in jax.tree.leaves(tree):
        aval = jax.typeof(leaf)
        manual = getattr(aval, "manual_axis_type", None)
        axes |= set(getattr(manual, "varying", None) or getattr(aval, "vma", None) or ())
    return frozenset(axes)


def unchecked_axes() -> tuple[str, ...]:
    """The axes of a surrounding `pmap`, or `shard_map` with check_vma=False.

    There JAX does not know which arrays differ between the devices.
    """
    return () if config._check_vma.value else tuple(jax.sharding.get_abstract_mesh().manual_axes)


def vary(tree: Any, axes: frozenset) -> Any:
    """Marks arrays as differing along mesh axes.

    Inside `shard_map`, the gradient with respect to an array that all devices share is summed over
    the devices at once: for per-example gradients that would mix examples before they are clipped.
    """

    def one(leaf: jax.Array) -> jax.Array:
        missing = tuple(sorted(axes - varying_axes(leaf)))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(one, tree) if axes else tree


def one_example(batch: Any) -> Any:
    """The batch's tree with abstract values in place of arrays, each without its leading axis."""
    return jax.tree.map(lambda leaf: mapped_aval(leaf.shape[0], 0, jax.typeof(leaf)), batch)


def foreign_key(eqn: Any) -> str | None:
    """The kind of the key that an equation draws from, unless it is JAX's own Threefry."""
    name = eqn.primitive.name
    if not name.startswith("random_") or name in ("random_wrap", "random_unwrap", "random_seed"):
        return None
    dtype = eqn.invars[0].aval.dtype
    return None if str(dtype) == "key<fry>" else str(dtype)


def source_line(eqn: Any) -> str:
    """The user's file, line and function that an equation comes from."""
    return source_info_util.summarize(eqn.source_info)


def runs_foreign_code(jaxpr: Any) -> bool:
    """Whether a jaxpr, or one inside, calls the host or a library, which it only names."""
    return any(
        eqn.primitive in CALLBACKS | FOREIGN
        or any(map(runs_foreign_code, jaxprs_in_params(eqn.params)))
        for eqn in open_jaxpr(jaxpr)[0].eqns
    )


def constants(jaxpr: Any) -> Iterator[np.ndarray]:
    """The arrays that a jaxpr, and all inside, closes over; of keys the words."""
    inner, consts = open_jaxpr(jaxpr)
    yield from map(_on_host, consts)
    for eqn in inner.eqns:
        yield from (_on_host(atom.val) for atom in eqn.invars if isinstance(atom, Literal))
        for part in jax.tree.leaves(tuple(eqn.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(part):
                yield from constants(part)


def _on_host(value: Any) -> np.ndarray:
    is_key = jax.numpy.issubdtype(jax.typeof(value).dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(value) if is_key else value)


def _is_jaxpr(part: Any) -> bool:
    return hasattr(open_jaxpr(part)[0], "eqns")


def scan_counts(eqn: Any) -> tuple[int, int]:
    """How many of a scan's operands are constants, and how many are its carry."""
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = eqn.params["ft_in"].unpack()  # JAX 0.11 and newer
    return len(consts), len(carry)


def open_jaxpr(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """A jaxpr and the values of its constants; newer JAX keeps them in one object."""
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def needed(jaxpr: Any) -> Any:
    """The jaxpr without what its results don't need; its arguments stay."""
    return dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)[0]


def bind(eqn: Any, operands: Sequence[Any]) -> Sequence[Any]:
    """Runs one equation on new operands; returns its results.

    Raises:
      ValueError: if JAX has no rule to do so for all examples at once.
    """
    source = eqn.source_info  # kept: the user's line, if the equation is traced again
    names = source_info_util.current_name_stack() + source.name_stack
    with source_info_util.user_context(source.traceback, name_stack=names), eqn.ctx.manager:
        try:
            results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
        except NotImplementedError as error:
            if not re.search("vmap|[Bb]atching", str(error)):
                raise
            raise ValueError(
                f"JAX can't vmap {eqn.primitive} at {source_line(eqn)} ({error}): take one example "
                'at a time, by per_example_grads(loss, microbatch_size=1) with method "auto" or '
                '"two_pass", which does without vmap'
            ) from error
    return results if eqn.primitive.multiple_results else [results]


def is_plain_call(eqn: Any) -> bool:
    """Whether an equation only calls a jaxpr: what `jit` makes, without shardings."""
    if eqn.primitive is primitives.closed_call_p:
        return True
    if eqn.primitive is not primitives.jit_p:
        return False
    names = ("in_shardings", "out_shardings")
    return all(sharding is UNSPECIFIED for name in names for sharding in eqn.params[name])


def coordinator() -> Any:
    """The client of the coordinator through which the processes of one program know each other.

    Raises:
      ValueError: if there is none.
    """
    client = distributed.global_state.client
    if client is None:
        raise ValueError(
            f"JAX runs in {jax.process_count()} processes, which do not know each other: call "
            "jax.distributed.initialize() in all of them, before anything else of JAX"
        )
    return client


def is_distributed() -> bool:
    """Whether `jax.distributed.initialize` was called."""
    return distributed.global_state.client is not None


def number_of_process() -> tuple[int, int]:
    """The number of this process and of all, as `jax.distributed.initialize` knows them.

    Unlike `jax.process_index()` it does not make JAX look for devices.
    """
    state = distributed.global_state
    return state.process_id, state.num_processes


def launched() -> int:
    """How many processes SLURM, Open MPI or a TPU pod has started as one program; 1: none has.

    A pod of Kubernetes can't tell without rights that it may lack.
    """
    for cluster in clusters.ClusterEnv._cluster_types:
        asks = cluster.opt_in_only_method or cluster.__name__ == "K8sCluster"
        if not asks and cluster.is_env_present():
            return int(cluster.get_process_count())
    return 1


def platform() -> str:
    """The platform that JAX runs on by default, as it is lowered for: cpu, cuda, rocm, tpu."""
    backend = get_backend()
    return "cuda" if "cuda" in backend.platform_version.lower() else backend.platform


def without_locations(exported: jax.export.Exported) -> jax.export.Exported:
    """The same program without the names of source files and functions that JAX puts into it."""
    requirement = stablehlo.StablehloCompatibilityRequirement.WEEK_4
    version = stablehlo.get_version_from_compatibility_requirement(requirement)
    with mlir.make_ir_context():
        module = ir.Module.parse(exported.mlir_module())
        text = str(module.operation.get_asm(enable_debug_info=False))
    artifact = stablehlo.serialize_portable_artifact_str(text, version)
    return dataclasses.replace(
        exported, mlir_module_serialized=artifact, fun_name="predict", _get_vjp=None
    )
