"""What is learnt: a model and its loss, as pure functions of one record.

`Task` holds the functions. `classifier`, `regressor` and `language_model` make one of a model of
Flax (linen or nnx), Equinox or Haiku, as it is. None of the libraries is loaded before a model of
it is given.
"""

from .supervised import classifier as classifier
from .supervised import language_model as language_model
from .supervised import regressor as regressor
from .task import Task as Task
from .task import WithStatistics as WithStatistics
from .task import inputs_of as inputs_of
