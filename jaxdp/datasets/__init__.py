"""Data sets as arrays in memory, with the private, public and test records kept apart.

A `Dataset` is made of arrays. `load` takes a `DataConfig` and returns one with its `Format`: the
digits of scikit-learn, an image set of TFDS, or the windows of a text file. `feeding` brings the
records of each step to the device.
"""

from .config import DataConfig as DataConfig
from .loading import load as load
from .records import Dataset as Dataset
from .records import Records as Records
from .sources import Format as Format
from .sources import Source as Source
from .splits import parse_split as parse_split
