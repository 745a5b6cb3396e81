"""Private training of a Flax nnx model with dropout, by `nnx.Optimizer`.

Command: python examples/nnx_dropout.py
Time:    5 s on 2 cores
Prints:  150 steps: ε = 3 at δ = 0.000337
         test accuracy 0.8611 of 360 records (every run draws new secrets: 0.84 to 0.88)
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import jaxdp
from jaxdp.accounting import round_up, shown_delta

digits = load_digits()
inputs, labels = (digits.data / 16).astype(np.float32), digits.target
x, y = inputs[:1437], labels[:1437]  # private; the other records are the test


class Net(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 64, rngs=rngs)
        self.dropout = nnx.Dropout(0.2)  # without rngs: every call gives a key
        self.out = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x, key=None):
        return self.out(self.dropout(nnx.relu(self.hidden(x)), rngs=key))


model = Net(nnx.Rngs(0))
graph, _, rest = nnx.split(model, nnx.Param, ...)


def loss(params, x, y, key):  # of one example, with its own key
    logits = nnx.merge(graph, params, rest)(x, key)
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
optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
dropout_key = jaxdp.secret_key()  # for dropout alone


@nnx.jit
def step(model, optimizer, batch, indices, mask):
    step_key = jaxdp.dpsgd.jax_key(dropout_key, "dropout", optimizer.step[...])
    keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, indices)  # by record, not by place
    optimizer.update(model, grads(nnx.state(model, nnx.Param), (*batch, keys), mask))


for (*batch, indices), mask in plan.batches(x, y, np.arange(len(x))):
    step(model, optimizer, batch, indices, mask)

model.eval()  # no dropout
spent = round_up(plan.epsilon_spent(optimizer.opt_state))
print(f"{plan.steps} steps: ε = {spent:g} at δ = {shown_delta(plan.delta):g}")
right = jnp.argmax(model(inputs[1437:]), axis=1) == labels[1437:]
print(f"test accuracy {jnp.mean(right):.4f} of {len(right)} records")
