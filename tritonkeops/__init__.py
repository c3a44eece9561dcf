"""tritonkeops: kernel reductions of formulas, compiled.

`from tritonkeops.torch import Genred` or `from tritonkeops.numpy import Genred`.
"""

__version__ = "0.1.0"
