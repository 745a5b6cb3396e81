"""The command `python -m jaxdp.evaluate RUN`: loads a release and scores it."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from .accounting.rounding import round_up
from .datasets import loading
from .datasets.config import DataConfig
from .models.build import make_model
from .models.config import ModelConfig
from .models.scores import evaluate
from .trainer import parsing
from .trainer.release import statement
from .trainer.release.parameters import load_release

try:
    import flax
    import orbax.checkpoint
    import tyro
except ModuleNotFoundError as error:
    if error.name is None or error.name.startswith("jaxdp"):
        raise
    sys.exit(
        f"python -m jaxdp.evaluate needs {error.name}, which is not installed: "
        "pip install 'jaxdp[train]' (in a checkout: pip install -e '.[train]')"
    )


del flax, orbax  # only needed to be there


def main(args: Sequence[str]) -> int:
    """Runs the command with the given arguments and returns the exit status."""
    if not args or args[0] in ("-h", "--help"):
        print(
            "usage: python -m jaxdp.evaluate RUN [--test TEST] [OPTIONS]\n\nScores the release of "
            "a run (its folder, or the release/ in it) on its test records, or others of the same "
            "data. The options are those of the data: `python -m jaxdp.evaluate RUN --help`."
        )
        return 0 if args else 2
    try:
        released = load_release(args[0])
        params, facts = released
        data_config = tyro.cli(
            DataConfig,
            prog=f"python -m jaxdp.evaluate {args[0]}",
            args=args[1:],
            default=saved_data_config(args[0], facts["data"].partition(";")[0]),
        )
        dataset = loading.load(data_config, print)
        model = make_model(parsing.from_json(ModelConfig, facts["model"]), dataset)
        scores = evaluate(model, dataset, params, released.batch_stats)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    public = "declared public" if facts["test_is_public"] else "PRIVATE: so are these numbers"
    if data_config.test != facts["data"].rpartition("scored: ")[2]:
        public = "not the run's test records: if they are private, so are these numbers"
    print(f"{data_config.name}, {data_config.test}: {len(dataset.test)} records, {public}")
    print(f"accuracy {scores.accuracy:.4f}")
    print(f"loss {scores.loss:.4f}")
    if dataset.center is None:
        print(f"perplexity {math.exp(scores.loss):.3f} a character")
    label, epsilon = statement.labelled(facts["epsilon"])[0]
    private = "" if facts["private"] else ", but NOT PRIVATE: it was made with a seed"
    delta = round_up(facts["delta"], 3)
    print(f"ε = {epsilon:g} by {label}, at δ = {delta:g}{private}")
    return 0


def saved_data_config(path: str, name: str) -> DataConfig:
    """Where the run found its data; all that a release alone tells is their name."""
    for folder in (Path(path), Path(path).parent):
        file = folder / "private" / "config.json"
        if file.is_file():
            return parsing.read_config(file).data
    return DataConfig(name=name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
