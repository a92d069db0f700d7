"""Muon for the matrices of a transformer's blocks, AdamW for everything else.

Muon (Keller Jordan, 2024, https://kellerjordan.github.io/posts/muon/) replaces a matrix's momentum by the nearest
orthogonal matrix, found with five Newton-Schulz steps. For a model this small it halves the steps to a given loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Muon:
    """Steps all given matrices; those of one shape are orthogonalised together in one batched product."""

    def __init__(self, matrices: list[nn.Parameter], *, momentum: float = 0.95, weight_decay: float = 0.01) -> None:
        groups: dict[torch.Size, list[nn.Parameter]] = {}
        for matrix in matrices:
            groups.setdefault(matrix.shape, []).append(matrix)
        self.groups = list(groups.values())
        self.velocity = [torch.zeros(len(group), *group[0].shape, device=group[0].device) for group in self.groups]
        self.momentum, self.weight_decay = momentum, weight_decay

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for group, velocity in zip(self.groups, self.velocity):
            gradient = torch.stack([p.grad for p in group if p.grad is not None])
            velocity.lerp_(gradient, 1 - self.momentum)
            update = orthogonal(gradient.lerp(velocity, self.momentum))
            rows, columns = update.shape[-2:]
            update *= max(1.0, rows / columns) ** 0.5
            torch._foreach_mul_(group, 1 - rate * self.weight_decay)
            torch._foreach_add_(group, list(update.unbind(0)), alpha=-rate)

    def state_dict(self) -> list[Tensor]:
        return self.velocity

    def load_state_dict(self, state: list[Tensor]) -> None:
        """ValueError when it is not of matrices of these shapes."""
        if [tuple(saved.shape) for saved in state] != [tuple(kept.shape) for kept in self.velocity]:
            raise ValueError("Muon's state is of matrices of other shapes")
        for kept, saved in zip(self.velocity, state):
            kept.copy_(saved)


def orthogonal(matrices: Tensor) -> Tensor:
    """About the nearest (semi-)orthogonal matrix of each of [N, rows, columns]: singular values land in 0.7..1.2."""
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if wide else x.mT
