"""WRN-16: a wide residual network with GroupNorm and standardised weights (Flax linen)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

GROUPS = 16  # of GroupNorm
BLOCKS = 2  # in each of three stages: 16 = 6 · 2 + 4 layers


class StandardisedConv(nn.Module):
    """A convolution whose kernels have mean 0 and variance 1, times a gain, `[B, H, W, C]`.

    References:
      Qiao et al. 2019, Weight Standardization (arXiv 1903.10520), equation 7.
    """

    features: int
    size: int = 3
    stride: int = 1

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        fan_in = self.size**2 * x_BxHxWxC.shape[-1]
        shape = (self.size, self.size, x_BxHxWxC.shape[-1], self.features)
        w = self.param("kernel", nn.initializers.he_normal(), shape)
        # It begins where the output has the variance of the input.
        gain = self.param("gain", nn.initializers.constant(fan_in**-0.5), (self.features,))
        mean, variance = jnp.mean(w, (0, 1, 2)), jnp.var(w, (0, 1, 2))
        w = (w - mean) / jnp.sqrt(variance + 1e-5) * gain
        return jax.lax.conv_general_dilated(
            x_BxHxWxC,
            w,
            (self.stride, self.stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class WideResNet(nn.Module):
    """WRN-16-k: a convolution, three stages of two blocks with 16k, 32k and 64k channels, a mean.

    It is near the network of De et al. 2022, and not the same: theirs has other first gains, and
    biases, and the activation before the normalisation.

    Normalisation and activation come before each convolution of a block. With a widening factor of
    4 and 10 classes it has 2,751,146 parameters.

    References:
      De et al. 2022, Unlocking High-Accuracy Differentially Private Image Classification through
      Scale (arXiv 2204.13650), section 3. Zagoruyko & Komodakis 2016, Wide Residual Networks.
    """

    num_classes: int
    widening: int
    groups: int = GROUPS

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        normed = lambda x: nn.relu(nn.GroupNorm(self.groups)(x))
        x = StandardisedConv(16)(x_BxHxWxC)
        for stage in range(3):
            features = 16 * self.widening * 2**stage
            for block in range(BLOCKS):
                stride = 2 if stage > 0 and block == 0 else 1
                h = normed(x)
                if x.shape[-1] != features:
                    x = StandardisedConv(features, 1, stride)(h)
                h = StandardisedConv(features, 3, stride)(h)
                x = x + StandardisedConv(features)(normed(h))
        return nn.Dense(self.num_classes)(jnp.mean(normed(x), axis=(1, 2)))
