"""Privacy bugs that the tests must find: `python -m tests.mutants` plants each and looks.

A new subject is a module with `MUTANTS` and a line in `SUBJECTS`.
"""

from . import (
    accounting,
    audit,
    clipping,
    devices,
    ledger,
    masks,
    noise,
    norms,
    precision,
    release,
    resume,
    sampling,
    seal,
    splits,
    statement,
)
from .mutant import Mutant

SUBJECTS: dict[str, tuple[Mutant, ...]] = {
    "clipping": clipping.MUTANTS,
    "norms": norms.MUTANTS,
    "precision": precision.MUTANTS,
    "masks": masks.MUTANTS,
    "noise": noise.MUTANTS,
    "sampling": sampling.MUTANTS,
    "accounting": accounting.MUTANTS,
    "ledger": ledger.MUTANTS,
    "resume": resume.MUTANTS,
    "splits": splits.MUTANTS,
    "release": release.MUTANTS,
    "statement": statement.MUTANTS,
    "seal": seal.MUTANTS,
    "audit": audit.MUTANTS,
    "devices": devices.MUTANTS,
}

ALL = tuple(mutant for mutants in SUBJECTS.values() for mutant in mutants)
