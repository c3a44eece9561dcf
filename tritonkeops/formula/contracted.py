"""What the pass that finds contractions makes of a reduction."""

from __future__ import annotations

from dataclasses import dataclass

from tritonkeops.formula.ir import Node, Reduction, Var


@dataclass(frozen=True)
class Contracted:
    """A reduction in terms of contractions, of its variables and of `center`.

    `center` is a hidden parameter, the last variable: any value is right, and the best is amid the values of
    `center_of`, a formula of the reduced axis, which is known where differences became inner products. The rounding
    error of each pair value that became an inner product is at most about eps times the sum of `sizes`, scalar formulas
    of the kept and of the reduced axis.
    """

    node: Reduction
    center: Var | None
    center_of: Node | None
    sizes: tuple[Node, Node]
