"""What is learnt: `Task`, and tasks that are made of a model.

`classifier`, `regressor` and `language_model` take a Flax linen module, an nnx module, an Equinox
module or a Haiku transform. `jaxdp.fit` trains them, and so it trains any `Task` of your own
functions.
"""

from .builtin import make_task as make_task
from .supervised import classifier as classifier
from .supervised import language_model as language_model
from .supervised import regressor as regressor
from .task import Task as Task
from .task import WithStatistics as WithStatistics
