"""What a run keeps: its folder, ledger, segments with their secrets, checkpoints; how it goes on.

`python -m jaxdp.train` writes these files, `--resume` and `python -m jaxdp.report` read them. All
of them are private.
"""

from .files import Record as Record
from .files import load_record as load_record
from .ledger import Budget as Budget
from .ledger import Ledger as Ledger
from .ledger import Segment as Segment
