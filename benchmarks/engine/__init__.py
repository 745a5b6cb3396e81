"""How much time and memory do private gradients take, compared with plain ones?

Commands:
    python -m benchmarks.engine --suite quick|full    whole clipped gradients, by several methods
    python -m benchmarks.engine.clipping_cost         layerwise and batch clipping

The figures of the README are in `results/`, a file for every machine, JAX version and day.
"""
