import torch
from torch import nn

from utils.machine.sgd import make_sgd

SETTINGS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}


def one_step(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, gradient: float) -> None:
    parameter.grad = torch.full_like(parameter, gradient)
    optimizer.step()


def test_it_steps_as_torchs_own_fused_one():
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
    optimizers = make_sgd([ours], ours.device, **SETTINGS), torch.optim.SGD([theirs], fused=True, **SETTINGS)
    for gradient in (0.5, -0.25, 3.0):
        for optimizer, parameter in zip(optimizers, (ours, theirs), strict=True):
            one_step(optimizer, parameter, gradient)
        assert torch.equal(ours, theirs)


def test_memory_that_was_there_before_never_becomes_momentum():
    """As on a GPU in 16-mixed: the first step overflows and is skipped; new memory holds NaN here, so that it would be seen."""
    torch.use_deterministic_algorithms(True)  # fills uninitialised memory with NaN
    try:
        parameter = nn.Parameter(torch.ones(5))
        optimizer = make_sgd([parameter], parameter.device, **SETTINGS)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(1.0)  # what torch's GradScaler sets
        one_step(optimizer, parameter, float("inf"))
        assert torch.equal(parameter, torch.ones(5))
        optimizer.found_inf = torch.tensor(0.0)
        one_step(optimizer, parameter, 1.0)
        assert torch.allclose(parameter, torch.full((5,), 1 - 0.1 * 1.01))
    finally:
        torch.use_deterministic_algorithms(False)
