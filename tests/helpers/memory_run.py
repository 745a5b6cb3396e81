"""A program that trains on a large set and prints what memory that took: see `test_memory`.

python memory_run.py KIND FOLDER

KIND is "mapped", "source" or "table"; the folder holds its files. Prints one line of JSON: the
anonymous memory (RssAnon) in MB when nothing was opened yet, at most while the set was opened, at
the end of the first step, and at most from then on.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxdp
from jaxdp.datasets import files_digest, loading
from jaxdp.datasets.config import DataConfig

FEATURES = {"mapped": 3072, "source": 3072, "table": 64}


class OwnSource:
    """Rows of a file of bytes, read one by one, as a user may write it."""

    def __init__(self, file, labels, width):
        self.file, self.labels, self.width = file, labels, width

    def __len__(self):
        return len(self.labels)

    def __getitems__(self, rows):
        x = np.empty((len(rows), self.width), np.uint8)
        with open(self.file, "rb", buffering=0) as file:
            for i, row in enumerate(rows):
                file.seek(row * self.width)
                if file.readinto(x[i].data) != self.width:
                    raise OSError(f"{self.file} ends within row {row}")
        return x, self.labels[rows]

    def digest(self):
        return files_digest(self.file)


def opened(kind, folder):
    if kind == "table":
        config = DataConfig(
            file=str(folder / "x.parquet"),
            schema=str(folder / "schema.toml"),
            label="y",
            test=None,
        )
        return loading.load(config)[0]
    y = np.load(folder / "y.npy", mmap_mode="r")
    if kind == "source":
        return jaxdp.Dataset(private=OwnSource(folder / "x.bin", y, FEATURES[kind]))
    x = np.load(folder / "x.npy", mmap_mode="r")
    return jaxdp.Dataset.split((x, y), private="rows[:99%]", test="rows[99%:]")


def task(features):
    def logits(params, x):
        return (x / 255.0) @ params

    def loss(params, record, key):
        x, y = record
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y)

    return jaxdp.Task(
        lambda key, record: jnp.zeros((features, 10)),
        loss,
        lambda params, record: {"right": jnp.argmax(logits(params, record[0])) == record[1]},
        logits,
    )


def anonymous():
    """RssAnon in MB: what is mapped from files is not in it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1000
    raise OSError("/proc/self/status names no RssAnon")


class Watched:
    """Looks at the memory every few milliseconds, and keeps the peak."""

    def __init__(self):
        self.peak = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self):
        while True:
            self.peak = max(self.peak, anonymous())
            time.sleep(0.005)

    def taken(self):
        """The peak until now; a new one begins."""
        peak, self.peak = max(self.peak, anonymous()), 0.0
        return peak


def main(kind, folder):
    jax.block_until_ready(jnp.zeros(3) + 1)  # what JAX itself takes
    start, watched = anonymous(), Watched()
    data = opened(kind, folder)
    opening = watched.taken()
    first = []

    def note(progress):
        if not first:
            first.append(anonymous())
            watched.taken()

    result = jaxdp.fit(
        task(FEATURES[kind]),
        data,
        jaxdp.PlanSettings(
            expected_batch_size=256, steps=12, epsilon=8.0, clipping=jaxdp.clip_individual(1.0)
        ),
        optimizer=optax.sgd(0.1),
        output=folder / "run",
        callbacks=[note],
        seed=1,
    )
    assert result.finished
    assert not data.private.in_memory
    told = {"start": start, "opening": opening, "first": first[0], "training": watched.taken()}
    print(json.dumps({**told, "bytes": data.private.nbytes}))


if __name__ == "__main__":
    os.environ["XDG_CACHE_HOME"] = str(Path(sys.argv[2]) / "cache")
    main(sys.argv[1], Path(sys.argv[2]))
