"""WRN-d-k: a wide residual network with GroupNorm and standardised weights (Flax linen)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

GROUPS = 16  # of GroupNorm


class StandardisedConv(nn.Module):
    """A convolution whose kernels have mean 0 and length 1, times a gain, `[B, H, W, C]`.

    References:
      Brock et al. 2021, Characterizing Signal Propagation (arXiv 2101.08692), equation 1.
    """

    features: int
    size: int = 3
    stride: int = 1

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        fan_in = self.size**2 * x_BxHxWxC.shape[-1]
        shape = (self.size, self.size, x_BxHxWxC.shape[-1], self.features)
        w = self.param("kernel", nn.initializers.lecun_normal(), shape)
        gain = self.param("gain", nn.initializers.ones, (self.features,))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        squared_length = jnp.var(w, (0, 1, 2)) * fan_in
        w = (w - jnp.mean(w, (0, 1, 2))) * jax.lax.rsqrt(jnp.maximum(squared_length, 1e-4)) * gain
        x = jax.lax.conv_general_dilated(
            x_BxHxWxC,
            w,
            (self.stride, self.stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return x + bias


class WideResNet(nn.Module):
    """WRN-d-k: a convolution, three stages with 16k, 32k and 64k channels, a mean over positions.

    A stage has (d - 4)/6 blocks of two convolutions. Before each convolution but the first come
    ReLU and GroupNorm, in this order. The first block of a stage has a convolution in its
    shortcut too, with a GroupNorm of its own.

    References:
      De et al. 2022, Unlocking High-Accuracy Differentially Private Image Classification through
      Scale (arXiv 2204.13650), section 3 and their program. Zagoruyko & Komodakis 2016, Wide
      Residual Networks (arXiv 1605.07146).
    """

    num_classes: int
    layers: int
    widening: int

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        normed = lambda x: nn.GroupNorm(GROUPS, epsilon=1e-5)(nn.relu(x))
        x = StandardisedConv(16)(x_BxHxWxC)
        for stage in range(3):
            features = 16 * self.widening * 2**stage
            for block in range((self.layers - 4) // 6):
                stride = 2 if stage > 0 and block == 0 else 1
                h = StandardisedConv(features, 3, stride)(normed(x))
                if block == 0:
                    x = StandardisedConv(features, 1, stride)(normed(x))
                x = x + StandardisedConv(features)(normed(h))
        dense = nn.Dense(self.num_classes)
        return dense(jnp.mean(normed(x), axis=(1, 2)))
