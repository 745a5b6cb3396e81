"""The built-in models: networks, their losses and their scores.

`make_model` takes a `ModelConfig` and a `Dataset` and returns a Flax network, `init_params` draws
its parameters. `make_loss` and `make_unit_loss` return losses for `per_example_grads`;
`make_scorer` and `evaluate` score parameters on the test records. `batchnorm` trains Flax models
with BatchNorm in batch units.
"""

from . import batchnorm as batchnorm
from .build import init_params as init_params
from .build import make_model as make_model
from .config import ModelConfig as ModelConfig
from .losses import make_loss as make_loss
from .losses import make_unit_loss as make_unit_loss
from .scores import Scores as Scores
from .scores import evaluate as evaluate
from .scores import make_scorer as make_scorer
