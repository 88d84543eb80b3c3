"""Several states of one network: kept, averaged, and run without loading.

A state is a dict of tensors by parameter name, as `state_dict` gives it. All functions here are pure: they change no
tensor that they are given, and take states with the same names and shapes. Averages are computed in float32 at least.

    CoMA     (arXiv 2312.08977)  (1 - a) old + a new
    CoFiMA   (arXiv 2312.08977)  the same, every weight counted by its Fisher information
    TUNA     (arXiv 2508.08165)  per weight the sign of the mean, the largest magnitude among those that agree
    moving average with truncation: LoRA's A moves by the leading singular directions of what is new alone
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from convs.parts import refuse_recompute
from utils.formulas.subspaces import truncate

State = Mapping[str, Tensor]
FISHER_FLOOR = 1e-12  # keeps the weighted mean defined where neither state has any information


def changed(state: State, base: State) -> dict[str, Tensor]:
    """Copies of the tensors of `state` that differ from those of `base`: what has to be kept beside it."""
    return {name: tensor.detach().clone() for name, tensor in state.items() if name not in base or not torch.equal(tensor, base[name])}


def mean_state(states: Sequence[State], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """sum_i w_i theta_i; equal weights that sum to 1 by default."""
    _check_names(*states)
    weights = [1 / len(states)] * len(states) if weights is None else weights
    return {name: _as(sum(w * _wide(state[name]) for w, state in zip(weights, states, strict=True)), tensor)
            for name, tensor in states[0].items()}


def move_towards(old: State, new: State, share: float) -> dict[str, Tensor]:
    """(1 - a) old + a new, a = `share` in [0, 1] (CoMA, LAE's moving average)."""
    return mean_state([old, new], [1 - share, share])


def fisher_average(old: State, new: State, old_fisher: State, new_fisher: State, share: float,
                   floor: float = FISHER_FLOOR) -> dict[str, Tensor]:
    """((1 - a) F_old theta_old + a F_new theta_new) / ((1 - a) F_old + a F_new), elementwise (CoFiMA).

    Args:
        old_fisher, new_fisher: diagonals F of the Fisher information, raised to `floor` where they are below.
        share: a in [0, 1].
    """
    _check_names(old, new, old_fisher, new_fisher)
    averaged = {}
    for name, tensor in old.items():
        before = (1 - share) * _wide(old_fisher[name]).clamp_min(floor)
        after = share * _wide(new_fisher[name]).clamp_min(floor)
        averaged[name] = _as((before * _wide(tensor) + after * _wide(new[name])) / (before + after), tensor)
    return averaged


def sign_agreement(states: Sequence[State]) -> dict[str, Tensor]:
    """Per weight the sign of the mean over states, times the largest magnitude among those of that sign (TUNA).

    A mean of exactly 0 gives 0.
    """
    _check_names(*states)
    merged = {}
    for name, tensor in states[0].items():
        stacked = torch.stack([_wide(state[name]) for state in states])  # (T, ...)
        sign = stacked.mean(dim=0).sign()
        merged[name] = _as(sign * (stacked * sign).amax(dim=0).clamp_min(0), tensor)
    return merged


def moving_lora(merged: State, trained: State, share: float, energy: float) -> dict[str, Tensor]:
    """A = A_M + a trunc_p(A_s - A_M) for LoRA's A, theta = theta_M + a (theta_s - theta_M) for all else.

    Args:
        merged: M, the state in use; trained: s, the state that training goes on from.
        share: a in [0, 1]; energy: p in (0, 1], see `truncate`.
    """
    _check_names(merged, trained)
    moved = {}
    for name, tensor in merged.items():
        step = _wide(trained[name]) - _wide(tensor)
        moved[name] = _as(_wide(tensor) + share * (truncate(step, energy) if name.endswith("lora_A") else step), tensor)
    return moved


@contextmanager
def under_state(module: nn.Module, state: State) -> Iterator[None]:
    """Inside, `module` runs with the tensors of `state` in place of its own of these names; none is copied.

    Names that `state` lacks keep the module's own tensors, so `changed` is all that another state needs. Gradients go to what is
    swapped in, if it takes any.

    Raises:
        UserError: gradient checkpointing where gradients are taken.
    """
    refuse_recompute(module, "a pass under another state")
    swapped: list[tuple[dict[str, Tensor | None], str, Tensor | None]] = []
    try:
        for name, tensor in state.items():
            path, _, leaf = name.rpartition(".")
            owner = module.get_submodule(path)
            table = owner._parameters if leaf in owner._parameters else owner._buffers
            assert leaf in table and table[leaf] is not None, f"the module has no tensor {name}"
            assert table[leaf].shape == tensor.shape, f"{name}: got shape {tuple(tensor.shape)}, expected {tuple(table[leaf].shape)}"
            swapped.append((table, leaf, table[leaf]))
            table[leaf] = tensor
        yield
    finally:
        for table, leaf, own in reversed(swapped):
            table[leaf] = own


def _check_names(first: State, *others: State) -> None:
    for other in others:
        assert first.keys() == other.keys(), f"states differ in {sorted(first.keys() ^ other.keys())[:5]}"


def _wide(tensor: Tensor) -> Tensor:
    """In float32, or float64 as it is: a half would round the average."""
    tensor = tensor.detach()
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _as(value: Tensor, like: Tensor) -> Tensor:
    return value.to(like.dtype)
