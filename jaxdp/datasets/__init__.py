"""Records with the private, public and test ones kept apart, from arrays, files and data sets.

A `Dataset` is made of arrays, or of a `Source` whose records are read when they are sampled. `load`
takes a `DataConfig` and returns one with its `Format`: a table, a folder of images, a set of TFDS,
the windows of a text, the digits of scikit-learn. `feeding` brings the records of each step to the
device.
"""

from .config import DataConfig as DataConfig
from .dataset import Dataset as Dataset
from .digests import files_digest as files_digest
from .loading import load as load
from .records import Records as Records
from .rows import Source as Source
from .sources import Format as Format
from .splits import parse_split as parse_split
