"""Private training of a Haiku model, with layers that may keep no state of the batch.

Command: python examples/haiku_model.py     (pip install dm-haiku)
Time:    5 s on 2 cores
Prints:  150 steps: ε = 3 at δ = 0.000337
         test accuracy 0.8806 of 360 records (every run draws new secrets: 0.85 to 0.89)
"""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import jaxdp
from jaxdp.accounting import round_up, shown_delta

digits = load_digits()
inputs, labels = (digits.data / 16).astype(np.float32), digits.target
x, y = inputs[:1437], labels[:1437]  # private; the other records are the test


def forward(x):
    # LayerNorm: hk.BatchNorm would average over private records, and keep that as state.
    norm = hk.LayerNorm(-1, create_scale=True, create_offset=True)
    return hk.nets.MLP([32, 10])(norm(x))


model = hk.without_apply_rng(hk.transform_with_state(forward))
params, state_of_model = model.init(jax.random.key(0), x[0])
assert not jax.tree.leaves(state_of_model), f"{state_of_model} is state: see the guide"


def loss(params, x, y):  # of one example
    logits, _ = model.apply(params, state_of_model, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y)


plan = jaxdp.Plan(
    num_examples=len(x),
    expected_batch_size=256,
    steps=150,
    epsilon=3.0,
    clipping=jaxdp.clip_individual(1.0),
)
grads = jaxdp.per_example_grads(loss)
tx = optax.chain(jaxdp.privatize(plan), optax.adam(2e-2))


@jax.jit
def step(params, state, batch, mask):
    updates, state = tx.update(grads(params, batch, mask), state, params)
    return optax.apply_updates(params, updates), state


state = tx.init(params)
for batch, mask in plan.batches(x, y):
    params, state = step(params, state, batch, mask)

logits, _ = model.apply(params, state_of_model, inputs[1437:])
spent = round_up(plan.epsilon_spent(state))
print(f"{plan.steps} steps: ε = {spent:g} at δ = {shown_delta(plan.delta):g}")
right = jnp.argmax(logits, axis=1) == labels[1437:]
print(f"test accuracy {jnp.mean(right):.4f} of {len(right)} records")
