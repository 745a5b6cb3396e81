"""Several changed views of each example in one step (augmentation multiplicity), in one's own loop.

Command: python examples/views.py
Time:    6 s on 2 cores
Prints:  100 steps: ε = 3 at δ = 0.000337
         test accuracy 0.8611 of 360 records (every run draws new secrets: 0.84 to 0.89)

The loss of an example is the mean over its views, so their gradients are averaged before they are
clipped: the example is one unit with one norm, and neither noise nor ε depends on how many views
it has. A row of the batch for every view would be wrong: each row is clipped alone, so an example
of 4 rows moves the sum by up to 4 clipping norms, where the noise hides one.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import jaxdp
from jaxdp.accounting import round_up, shown_delta

VIEWS = 4

digits = load_digits()
inputs, labels = (digits.images / 16).astype(np.float32), digits.target  # [1797, 8, 8]
x, y = inputs[:1437], labels[:1437]  # private; the other records are the test


def augment(key, image):  # makes it brighter or darker, and its pixels a little noisy
    light_key, noise_key = jax.random.split(key)
    light = jax.random.uniform(light_key, minval=0.7, maxval=1.3)
    return light * image + 0.1 * jax.random.normal(noise_key, image.shape)


def logits(params, image):
    return image.reshape(-1) @ params["w"] + params["b"]


def loss(params, image, label, key):  # of one example, with its own key
    def of_view(number):
        view = augment(jax.random.fold_in(key, number), image)
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, view), label)

    return jnp.mean(jax.vmap(of_view)(jnp.arange(VIEWS)))


plan = jaxdp.Plan(
    num_examples=len(x),
    expected_batch_size=512,
    steps=100,
    epsilon=3.0,
    clipping=jaxdp.clip_individual(1.0),
)
grads = jaxdp.per_example_grads(loss)
tx = optax.chain(jaxdp.privatize(plan), optax.adam(5e-2))
params = {"w": jnp.zeros((64, 10)), "b": jnp.zeros(10)}
state = tx.init(params)
views_key = jaxdp.secret_key()  # for the views alone


@jax.jit
def step(params, state, number, batch, indices, mask):
    step_key = jaxdp.dpsgd.jax_key(views_key, "views", number)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, indices)  # by record, not by place
    updates, state = tx.update(grads(params, (*batch, keys), mask), state, params)
    return optax.apply_updates(params, updates), state


for number, ((*batch, indices), mask) in enumerate(plan.batches(x, y, np.arange(len(x)))):
    params, state = step(params, state, number, batch, indices, mask)

spent = round_up(plan.epsilon_spent(state))
print(f"{plan.steps} steps: ε = {spent:g} at δ = {shown_delta(plan.delta):g}")
right = jnp.argmax(jax.vmap(logits, (None, 0))(params, inputs[1437:]), axis=1) == labels[1437:]
print(f"test accuracy {jnp.mean(right):.4f} of {len(right)} records")
