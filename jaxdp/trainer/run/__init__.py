"""What a run keeps: its folder, ledger, secrets and checkpoints; and how it goes on after a stop.

`jaxdp.fit` and `python -m jaxdp.train` write these files. A resume and `python -m jaxdp.report`
read them, and `python -m jaxdp.seal` destroys the secrets. All of them are private.
"""

from .ledger import Budget as Budget
from .ledger import Ledger as Ledger
from .ledger import Segment as Segment
from .record import Record as Record
from .record import load_record as load_record
