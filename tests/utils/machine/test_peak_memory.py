"""Peak memory is counted from a moment on, not over the whole process."""

import sys

import numpy as np
import pytest
import torch

from utils.machine.peak_memory import CLEAR_REFS, peak_memory_mb, reset_peak_memory

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux" or not CLEAR_REFS.exists(), reason="only Linux counts anew")
def test_what_was_used_before_the_reset_does_not_count():
    np.ones(300 * 2**20, dtype=np.uint8)
    with_large = peak_memory_mb(CPU)
    reset_peak_memory(CPU)
    after = peak_memory_mb(CPU)
    assert after < with_large - 200
    np.ones(300 * 2**20, dtype=np.uint8)
    assert peak_memory_mb(CPU) > after + 200
