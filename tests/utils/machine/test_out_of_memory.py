"""Out of memory: the message names the setting to change."""

import pytest
import torch

from tests.support import make_config
from utils.errors import UserError
from utils.machine.out_of_memory import out_of_memory_as_user_error
from utils.run.monitor import Monitor

EXPECTED = {"train": "raise accumulate (now 2)", "statistics": "lower test_batch_size (now 64)", "evaluation": "lower test_batch_size",
            "alignment": "lower ca_memory_gb (now 4)"}


@pytest.mark.parametrize("stage", EXPECTED)
def test_too_large_an_allocation_names_the_setting_of_its_stage(stage):
    monitor = Monitor()
    config = make_config(accumulate=2, batch_size=64)
    with pytest.raises(UserError) as raised, out_of_memory_as_user_error(config, monitor), monitor.stage(stage):
        torch.empty(2**60)
    assert f"stage '{stage}'" in str(raised.value)
    assert EXPECTED[stage] in str(raised.value)


def test_a_gpu_s_error_is_recognised():
    with pytest.raises(UserError, match="precision bf16-mixed halves"), out_of_memory_as_user_error(make_config(), Monitor()):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


def test_other_errors_pass_through():
    with pytest.raises(RuntimeError, match="shapes"), out_of_memory_as_user_error(make_config(), Monitor()):
        raise RuntimeError("shapes do not match")
