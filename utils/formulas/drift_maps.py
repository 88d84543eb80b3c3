"""How a moved backbone maps old features to new ones, as SLDC has it (arXiv 2511.09926): alpha_1 linear, alpha_2 weakly nonlinear.

X and Y are features (n, D) of the same images before and after a task, scaled to unit length.

    alpha_1    W = I + (X'X + r I)^-1 X'(Y - X),    r = 1e-4
    alpha_2    T(f) = c_0 f + c_1 A f + c_2 (f + MLP(f)),    c = softmax(a), a from [1, 0, 0], A from I, MLP from 0

Differs from the authors' code: the ridge pulls to the identity, where theirs pulls to 0 and then mixes the identity in;
alpha_2's MLP has a shortcut and a last layer that begins at 0, so that T begins at the identity, where theirs begins at random.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RIDGE = 1e-4
STEPS, BATCH, FIRST_LR, LAST_LR = 5000, 32, 1e-3, 5e-4  # of alpha_2


def linear_map(before: Tensor, after: Tensor, ridge: float = RIDGE) -> Tensor:
    """alpha_1: W (D, D) float64; features are rows, f -> f W. The identity where nothing moved or no image was seen."""
    x, y = F.normalize(before.double(), dim=1), F.normalize(after.double(), dim=1)
    identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return identity + torch.linalg.solve(x.T @ x + ridge * identity, x.T @ (y - x))


class MixtureMap(nn.Module):
    """alpha_2: unit features -> features (N, D)."""

    def __init__(self, dim: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.mixing = nn.Parameter(torch.tensor([1.0, 0.0, 0.0]))
        self.linear = nn.Parameter(torch.eye(dim))  # A
        bound = dim**-0.5  # torch's own start of a Linear, drawn from the generator
        self.hidden = nn.Parameter(torch.empty(dim, dim).uniform_(-bound, bound, generator=generator))
        self.hidden_bias = nn.Parameter(torch.empty(dim).uniform_(-bound, bound, generator=generator))
        self.output = nn.Parameter(torch.zeros(dim, dim))
        self.output_bias = nn.Parameter(torch.zeros(dim))

    def forward(self, unit: Tensor) -> Tensor:
        c = self.mixing.softmax(dim=0)
        mlp = F.linear(F.linear(unit, self.hidden, self.hidden_bias).relu(), self.output, self.output_bias)
        return (c[0] + c[2]) * unit + c[1] * F.linear(unit, self.linear) + c[2] * mlp

    @torch.no_grad()
    def move(self, features: Tensor) -> Tensor:
        """Features (N, D) of any length: mapped at unit length, their norms restored."""
        return self(F.normalize(features, dim=1)) * features.norm(dim=1, keepdim=True)


def fit_mixture(before: Tensor, after: Tensor, generator: torch.Generator, *, steps: int = STEPS, batch: int = BATCH) -> MixtureMap:
    """alpha_2 by Adam on the squared error of unit features, cosine from 1e-3 to 5e-4; n at least 1.

    `generator` is on the CPU: it draws the start and the batches.
    """
    x, y = F.normalize(before, dim=1), F.normalize(after, dim=1)
    mixture = MixtureMap(x.shape[1], generator).to(x)
    optimizer = torch.optim.Adam(mixture.parameters(), lr=FIRST_LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(steps, 1), eta_min=LAST_LR)
    drawn = torch.randint(len(x), (steps, batch), generator=generator).to(x.device)  # no step waits for its copy
    with torch.enable_grad():
        for rows in drawn:
            loss = F.mse_loss(mixture(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return mixture.requires_grad_(False)


def hold_features(features: Tensor, before: Tensor, norm_weight: float = 0.1) -> Tensor:
    """mean((f - f_old)^2) + w mean((|f| - |f_old|)^2), both (N, D): what SLDC's training adds to its classification loss."""
    return F.mse_loss(features, before) + norm_weight * F.mse_loss(features.norm(dim=1), before.norm(dim=1))
