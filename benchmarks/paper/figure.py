"""Draws docs/guides/clipping.png: norms of gradients before and after every kind of clipping.

python -m benchmarks.paper.figure [--figure FILE]
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxdp

NORMS = np.linspace(0.0, 4.0, 201)
# Two layers, the second with a third of the first one's norm.
SHARES = {"a": np.sqrt(0.9), "b": np.sqrt(0.1)}
CURVES = {
    "individual, batch or quantile, C = 1": (jaxdp.clip_individual(1.0), "-", "0.0"),
    "layerwise, C = 1/√2 for each of two layers": (jaxdp.clip_layerwise(0.5**0.5), "--", "0.0"),
    "layerwise, C = 0.9 and 0.44": (jaxdp.clip_layerwise({"a": 0.9, "b": 0.44}), ":", "0.0"),
    "normalised, C = 1, stability 0.01": (jaxdp.clip_normalised(1.0), "-", "0.55"),
    "normalised, C = 1, stability 0.5": (
        jaxdp.clip_normalised(1.0, stability=0.5),
        "--",
        "0.55",
    ),
}


def norms_after(clipping: jaxdp.Clipping) -> jax.Array:
    """Returns the norms `[len(NORMS)]` after clipping of gradients with the norms NORMS."""
    params = {name: jnp.zeros(1) for name in SHARES}

    def clipped_norm(norm: jax.Array) -> jax.Array:
        grads = {name: jnp.full((1, 1), share) * norm for name, share in SHARES.items()}
        total, _ = clipping.update(
            jaxdp.from_dense(grads, None, like=params), clipping.init(params)
        )
        return jnp.sqrt(sum(jnp.sum(t**2) for t in total.values()))

    return jax.lax.map(clipped_norm, jnp.asarray(NORMS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", type=Path, default=Path("docs/guides/clipping.png"))
    args = parser.parse_args()
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(NORMS, NORMS, color="0.8", linewidth=1)
    axes.annotate("unclipped", (1.42, 1.30), color="0.5", rotation=58, rotation_mode="anchor")
    for label, (clipping, style, color) in CURVES.items():
        axes.plot(NORMS, norms_after(clipping), style, color=color, label=label)
    axes.set(
        xlabel="norm of the gradient", ylabel="norm after clipping", xlim=(0, 4), ylim=(0, 1.6)
    )
    axes.legend(loc="lower right", frameon=False, fontsize="small")
    figure.savefig(args.figure, dpi=150)
    print(f"wrote {args.figure}")


if __name__ == "__main__":
    main()
