"""The trainer: options and data go in, a run's folder with its release comes out.

The public names are the options. A config file sets them: `config = Config(...)`. The commands
`python -m jaxdp.train`, `evaluate`, `predict`, `report`, `runs`, `seal`, `verify` and `plan` do the
rest.
"""

from ..datasets.config import DataConfig as DataConfig
from ..models.config import ModelConfig as ModelConfig
from .config import AuditConfig as AuditConfig
from .config import CheckpointConfig as CheckpointConfig
from .config import ClippingConfig as ClippingConfig
from .config import Config as Config
from .config import DistributedConfig as DistributedConfig
from .config import MeshConfig as MeshConfig
from .config import PlanConfig as PlanConfig
from .config import TrainingConfig as TrainingConfig
