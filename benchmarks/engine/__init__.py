"""How much time and memory do private gradients take, compared with plain ones?

Commands:
    python -m benchmarks.engine --suite quick|full|long  gradients and steps, by several methods
    python -m benchmarks.engine.table FILE               its results as tables in Markdown
    python -m benchmarks.engine.step                     steps, beside those with normal noise
    python -m benchmarks.engine.noise                    the release alone
    python -m benchmarks.engine.clipping_cost            layerwise and batch clipping

The `problems` need the extras [train] and Equinox, of [test].

The figures of the README are in `results/`, a file for every machine, JAX version and day.
"""
