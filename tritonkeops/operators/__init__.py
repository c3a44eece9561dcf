"""The words of the language. Importing this package fills the registry `tritonkeops.formula.ir.words`."""

from tritonkeops.operators import complex, derivatives, elementwise, reductions, special, tensor, vector

__all__ = ["complex", "derivatives", "elementwise", "reductions", "special", "tensor", "vector"]
