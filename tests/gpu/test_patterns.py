"""Patterns of pairs on a GPU: the cases of tests/interpreted, on the schedules that a GPU has."""

import pytest
import torch

from tests.interpreted import test_patterns as interpreted
from tests.interpreted.test_patterns import on_triton  # noqa: F401  a fixture

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use"),
]

test_batches_share_the_pattern = interpreted.test_batches_share_the_pattern
test_excluded_rows_are_not_seen = interpreted.test_excluded_rows_are_not_seen
test_few_rows = interpreted.test_few_rows
test_half_precision = interpreted.test_half_precision
test_long_vectors = interpreted.test_long_vectors
test_patterns = interpreted.test_patterns
test_reductions = interpreted.test_reductions
test_rows_without_pairs = interpreted.test_rows_without_pairs
test_sum_schemes = interpreted.test_sum_schemes
test_tiles_write_their_own_rows_only = interpreted.test_tiles_write_their_own_rows_only
