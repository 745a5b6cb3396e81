"""Release: what may leave a run, which is its noised parameters and the privacy statement.

The parameters and a `Statement` go in; the folder `release/` comes out, and `load_release` reads it
again. Reports and figures are made here too, but they are private.
"""

from .parameters import Release as Release
from .parameters import load_release as load_release
from .statement import Statement as Statement
from .statement import read_statement as read_statement
