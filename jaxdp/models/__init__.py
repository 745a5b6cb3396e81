"""The built-in models, and Flax models with BatchNorm.

`make_model` takes a `ModelConfig` and the `Format` of a data set and returns a Flax network.
`jaxdp.tasks` makes of it what can be trained. `batchnorm` trains Flax models with BatchNorm in
batch units.
"""

from . import batchnorm as batchnorm
from .build import make_model as make_model
from .config import ModelConfig as ModelConfig
