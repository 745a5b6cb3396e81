"""A Flax nnx model, from arrays to a private release, by `jaxdp.fit`.

Command: python examples/fit_nnx.py
Time:    6 s on 2 cores
Prints:  the plan, the steps, the results, and at last
         ε = 3, test accuracy 0.8774 (every run draws new secrets: 0.85 to 0.90)
"""

import optax
from flax import nnx
from sklearn.datasets import load_digits

import jaxdp

digits = load_digits()
rows = ((digits.data / 16).astype("float32"), digits.target)  # a record is a pair (inputs, label)
data = jaxdp.Dataset.split(rows, private="rows[:80%]", test="rows[80%:]", name="digits")
rngs = nnx.Rngs(0)
model = nnx.Sequential(
    nnx.Linear(64, 32, rngs=rngs),
    nnx.relu,
    nnx.Dropout(0.1, rngs=rngs),
    nnx.Linear(32, 10, rngs=rngs),
)
plan = jaxdp.PlanSettings(
    expected_batch_size=256, steps=100, epsilon=3.0, clipping=jaxdp.clip_individual(1.0)
)
result = jaxdp.fit(jaxdp.tasks.classifier(model), data, plan, optimizer=optax.adam(2e-2))
predicted = result.release.predict(rows[0])["class"]  # preprocessing and parameters are inside
print(f"ε = {result.epsilon:g}, test accuracy {result.scores['accuracy']:.4f}")
