"""Speed: named cases (`cases`), who computes them (`peers`), and their timing in one run (`compare`),
which `report` tells and `plot` draws.

`machine_code` counts the instructions of the GPU kernels without a GPU (`sass` reads machine code, `keops_cuda` counts
KeOps' own kernels), and `gpu` measures on one.
"""
