"""The words of the language. Importing this package fills the registry `tritonkeops.formula.ir.words`."""

from tritonkeops.operators import elementwise, reductions, vector

__all__ = ["elementwise", "reductions", "vector"]
