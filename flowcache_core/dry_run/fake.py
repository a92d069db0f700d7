"""Tensors without values at any size, on a device that this machine need not have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from .traffic import Sync, Traffic

DEVICE = "meta"
"""What stands for the accelerator; the CPU is the host. torch knows it in every build, and never mixes the two."""


class Values(TorchFunctionMode):
    """What values decide, decided without them: reading numbers counts as one sync, and they are all 0, or true.

    Attention is the one fused operation that it is on an accelerator.
    """

    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self.traffic = traffic
        self.last: tuple[Sync, int] | None = None

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.__bool__:
            self.traffic.count.syncs += [] if args[0].device.type == "cpu" else [Sync("bool", self.traffic.site())]
            return True
        if func is Tensor.item:  # a list of numbers is read one by one here, though it is one copy
            read, count = Sync("read", self.traffic.site()), self.traffic.count
            if args[0].device.type != "cpu" and self.last != (read, count.kernels):
                count.syncs.append(read)
                self.last = (read, count.kernels)
            return True if args[0].dtype == torch.bool else 0.0
        if func is F.scaled_dot_product_attention and len(args) == 3 and not kwargs:
            there = args[0].device.type == DEVICE
            aten = torch.ops.aten
            kernel = "_scaled_dot_product_flash_attention" + ("" if there else "_for_cpu")
            return getattr(aten, kernel)(*args)[0]
        return func(*args, **kwargs)


@contextmanager
def without_values(traffic: Traffic) -> Iterator[None]:
    """Every tensor made inside is fake; ``traffic`` hears of reads that fake tensors have no answer to."""
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(Values(traffic))
        stack.enter_context(torch.no_grad())
        yield
