"""Law 5 in one place: what a tick wants to know of the device is read at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class OneRead:
    """Per tick: something rides along (:meth:`ride`), a decision reads its values (:meth:`read`) and takes it with
    them, and whoever sent it has it (:meth:`arrived`) without another wait.
    """

    riding: Tensor | None = None
    there: Tensor | None = None

    def ride(self, values: Tensor) -> None:
        """fp32 values of any shape on the device, to be known on the CPU after the tick's decisions."""
        self.riding, self.there = values, None

    def read(self, values: Tensor) -> list[float]:
        """``values [n]``, fp32, as numbers."""
        return (values if self.riding is None else self.fetch(values)).tolist()

    def fetch(self, values: Tensor) -> Tensor:
        """``values [n]``, fp32, on the CPU."""
        if self.riding is None:
            return values.cpu()
        both = torch.cat((values, self.riding.flatten())).cpu()
        self.there, self.riding = both[len(values) :].view(self.riding.shape), None
        return both[: len(values)]

    def arrived(self) -> Tensor | None:
        """What rode along, on the CPU; read now where no decision has read anything. None when nothing did."""
        if self.riding is not None:
            self.there, self.riding = self.riding.cpu(), None
        found, self.there = self.there, None
        return found
