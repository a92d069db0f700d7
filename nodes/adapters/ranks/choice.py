"""What the FlowCache Multi-GPU node chose, against the devices that are there."""

from __future__ import annotations

from dataclasses import dataclass

import comfy.model_management
import torch

from ....flowcache_core.errors import Found, listed, require
from ....flowcache_core.parallel.shape import MeshShape, Shareable

NAME = "FlowCache Multi-GPU"
SHARED = (BRANCHES_FIRST, HEADS_ONLY) = ("branches first", "heads only")


@dataclass(frozen=True)
class Devices:
    """kind: of the host's device. count: of those, 1 for a kind that ranks cannot be on."""

    kind: str
    count: int

    @classmethod
    def here(cls) -> Devices:
        device = comfy.model_management.get_torch_device()
        return cls(device.type, torch.cuda.device_count() if device.type == "cuda" else 1)

    def __str__(self) -> str:
        name = {"cuda": "GPU", "cpu": "CPU"}.get(self.kind, self.kind)
        return f"{self.count} {name}" if self.count == 1 else f"{self.count} {name}s"


@dataclass(frozen=True)
class RanksChoice:
    """ranks: 0 for as many as there are devices. shared: which of guidance branches and heads go to ranks. timeout:
    seconds that a rank waits for another."""

    ranks: int = 0
    shared: str = BRANCHES_FIRST
    timeout: float = 300.0

    def check(self, devices: Devices) -> None:
        """SettingError for more ranks than there are devices. Ranks on a CPU are as many as asked for: a trial."""
        if self.ranks > 1 and devices.kind == "cpu":
            return
        accepted = f"0 to {devices.count}: there is {devices}" if devices.count == 1 else f"0 to {devices.count}"
        require(self.ranks <= devices.count, "ranks", Found(f"{self.ranks} with {devices}"), accepted)

    def most(self, devices: Devices) -> int:
        """Ranks at most."""
        return self.ranks or devices.count

    def shape(self, model: Shareable, devices: Devices) -> MeshShape:
        """How the ranks share a run of ``model``. SettingError with the numbers of ranks that fit it."""
        branches = 1 if self.shared == HEADS_ONLY else model.branches
        fitting = Shareable(branches, model.heads, model.kv_heads)
        if self.ranks:
            return fitting.fit(self.ranks)
        return next(shapes[0] for count in range(devices.count, 0, -1) if (shapes := fitting.shapes(count)))

    def describe(self, model: Shareable, devices: Devices) -> str:
        """For the node: what will run where. model: with as many branches as it may have."""
        guided, count = self.shape(model, devices), self.most(devices)
        alone = Shareable(1, model.heads, model.kv_heads)
        where = "the CPU, to try it: no faster" if devices.kind == "cpu" else f"{devices}"
        lines = [f"{count} ranks on {where}."]
        if guided.cfg == 1:
            lines.append(f"They share: {spoken(guided)}.")
        else:
            lines.append(f"With guidance: {spoken(guided)}.")
            if not self.ranks or self.ranks in alone.head_counts:
                lines.append(f"Without guidance: {spoken(self.shape(alone, devices))}.")
            else:
                fitting = [n for n in alone.head_counts if n <= count]
                lines.append(f"Without guidance it needs ranks {listed(fitting, 20)}.")
        return "\n".join([*lines, "Each loads the model's file for a run."])


def spoken(shape: MeshShape) -> str:
    if shape.size == 1:
        return "1 rank"
    parts = [f"{shape.cfg} for guidance branches"] if shape.cfg > 1 else []
    parts += [f"{shape.heads} for attention heads"] if shape.heads > 1 else []
    return " x ".join(parts)
