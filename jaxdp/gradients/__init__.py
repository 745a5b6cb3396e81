"""Per-example gradients of any JAX function, at nearly the cost of plain ones.

In: the loss of one example, parameters and a batch. Out: `PerExampleGrads`, a lazy value that gives
what DP-SGD needs, norms and weighted sums, microbatch by microbatch.
"""

from .explanation import Explanation as Explanation
from .explanation import LeafPlan as LeafPlan
from .explanation import explain as explain
from .lazy import Microbatch as Microbatch
from .lazy import PerExampleGrads as PerExampleGrads
from .per_example import all_rows as all_rows
from .per_example import from_dense as from_dense
from .per_example import per_example_grads as per_example_grads
from .unit_loss import mean_loss as mean_loss
