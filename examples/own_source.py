"""Records in a file of one's own, read when they are sampled: it may be larger than the memory.

Command: python examples/own_source.py
Time:    9 s on 2 cores
Prints:  the plan, the steps, the results, and at last
         ε = 3, test accuracy 0.8747 (every run draws new secrets: 0.85 to 0.90)
"""

import tempfile
from pathlib import Path

import numpy as np
import optax
from flax import linen as nn
from sklearn.datasets import load_digits

import jaxdp
from jaxdp.datasets import files_digest

RECORD = np.dtype([("pixels", np.uint8, 64), ("label", np.uint8)])  # 65 bytes, one after the other


class RecordFile:
    """The records of a file by their numbers, as `jaxdp.datasets.Source` describes it."""

    def __init__(self, path):
        self.path, self.rows = path, np.memmap(path, RECORD, mode="r")
        self.fields = {"pixels": "64 bytes of 0 to 16", "label": "a digit"}  # for the statement

    def __len__(self):  # N, which is published
        return len(self.rows)

    def __getitems__(self, numbers):  # several threads call it at a time
        found = self.rows[numbers]
        return found["pixels"] / np.float32(16), found["label"].astype(np.int32)

    def digest(self):  # of every byte: a run goes on with the same records only
        return files_digest(self.path)


path = Path(tempfile.mkdtemp(), "digits.bin")
np.array(list(zip(*load_digits(return_X_y=True), strict=True)), RECORD).tofile(path)

data = jaxdp.Dataset.split(RecordFile(path), private="rows[:80%]", test="rows[80%:]", name="digits")
task = jaxdp.tasks.classifier(nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(10)]))
plan = jaxdp.PlanSettings(
    expected_batch_size=256, steps=100, epsilon=3.0, clipping=jaxdp.clip_individual(1.0)
)
result = jaxdp.fit(task, data, plan, optimizer=optax.adam(2e-2))
print(f"ε = {result.epsilon:g}, test accuracy {result.scores['accuracy']:.4f}")
