"""Values that go from host to device or back while neither waits for the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

STREAMED = frozenset({"cuda", "meta"})
"""Types of devices whose copies run in the order of a stream: the host may go on, the device sees them in turn. "meta"
stands for one in a dry run."""


def streamed(device: torch.device) -> bool:
    """Whether copies from and to ``device`` may be left under way. On others (Apple's GPUs) torch may lose them."""
    return device.type in STREAMED


def sent(values: Tensor, device: torch.device | str) -> Tensor:
    """``values`` on ``device``. To a device nobody waits: torch has read the host's ordinary memory when it returns,
    and of pinned memory whoever changes it waits first. To the host it is waited for, since the host reads at once.
    """
    return values.to(device, non_blocking=streamed(torch.device(device)))


@dataclass(frozen=True)
class OnItsWay:
    """A tensor that has set out for the CPU: there at once on the CPU, a few ticks later on CUDA, on other devices only
    when it is asked for.
    """

    sent: Tensor
    copied: torch.cuda.Event | None = None

    @classmethod
    def of(cls, values: Tensor) -> OnItsWay:
        if values.device.type != "cuda":
            return cls(values)
        target = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        target.copy_(values, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(values.device))
        return cls(target, copied)

    @property
    def here(self) -> bool:
        """Whether :meth:`wait` returns without waiting."""
        return self.copied.query() if self.copied is not None else self.sent.device.type == "cpu"

    def wait(self) -> Tensor:
        """The values, to be read with ``tolist`` or ``cpu``; where the copy is still under way it is waited for."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.sent
