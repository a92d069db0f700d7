"""A device that is not there: tensors that lie on it hold their values in a CPU tensor and can be had only through it.

torch is told of a backend written in Python, so ``torch.device("pretend")`` is a device like any other, and results
can be compared with those of a CPU run bit by bit. It is as strict as CUDA is: tensors of two devices do not mix, and
what a program may know of a tensor without asking the device is its shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "pretend"
REGISTER = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
MISSING = f"torch {torch.__version__} cannot register a device written in Python"

COPIES = frozenset({"aten::_to_copy", "aten::copy_"})
# What the host must wait for, and with it for all that is under way.
READS = frozenset({"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select"})
# Indices may come from the CPU: they are moved to the tensor that they select from.
INDEXED = frozenset({"aten::index", "aten::index_put_", "aten::_index_put_impl_"})


def register() -> None:
    """Once per process, before the first use; it cannot be undone."""
    assert REGISTER is not None, MISSING
    REGISTER(NAME)


@dataclass
class UnderWay:
    """Copies to the host that nobody has waited for. Until then what lies there is nonsense, as it may be on CUDA."""

    copies: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def begin(self, target: Tensor, values: Tensor) -> None:
        self.copies.append((target, values.clone()))
        target.view(torch.uint8).fill_(0x7F) if target.dtype != torch.bool else target.fill_(True)

    def settle(self) -> None:
        """The host has waited."""
        for target, values in self.copies:
            target.copy_(values)
        self.copies.clear()


UNDER_WAY = UnderWay()


class PretendTensor(Tensor):
    """A tensor on the device; ``held`` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> PretendTensor:
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=torch.device(NAME, 0), requires_grad=False,
        )  # fmt: skip

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return computed(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.cpu().tolist()  # torch's own refuses subclasses; on a real device it is this copy

    def __repr__(self) -> str:  # type: ignore[override]
        return f"PretendTensor({self.held!r})"


class PretendDevice(TorchDispatchMode):
    """While it is active, tensors can be made on the device."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return computed(func, args, kwargs or {})


class Frontend(TorchFunctionMode):
    """What torch does before it comes to operations, for two functions that have no way into a Python device."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention and isinstance(args[0], PretendTensor):
            # One operation, the CPU's own, so that results are those of a CPU run to the last bit.
            require_one_device(func.__name__, [*args, *kwargs.values()])
            named = {key: v.held if isinstance(v, PretendTensor) else v for key, v in kwargs.items()}
            return PretendTensor(func(*(v.held if isinstance(v, PretendTensor) else v for v in args), **named))
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type == NAME:
            device = kwargs.pop("device")  # made on the host from the host's numbers, then copied, as on CUDA
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


def computed(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run one operation on the values and put the result where it belongs."""
    name = func._schema.name
    crosses = _crossing(name, args, kwargs) if name in COPIES and args[0].numel() else ""
    if crosses == "back" and _left_under_way(name, args, kwargs):
        return _begun(name, args, kwargs)
    late = crosses == "into" and not _from_one_piece(name, args)
    if not late and (crosses or name in READS):
        UNDER_WAY.settle()
    out = _computed(func, args, kwargs)
    if late and not kwargs.get("non_blocking"):
        UNDER_WAY.settle()  # gathered on the host first, from what lay there by then
    return out


def _crossing(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Whether a copy goes "into" the device or "back" to the host; empty for one within either."""
    source = args[1] if name == "aten::copy_" else args[0]
    if name == "aten::copy_":
        there = isinstance(args[0], PretendTensor)
    else:
        device = kwargs.get("device")
        there = isinstance(source, PretendTensor) if device is None else torch.device(device).type == NAME
    return "" if isinstance(source, PretendTensor) == there else "into" if there else "back"


def _from_one_piece(name: str, args: Sequence[Any]) -> bool:
    """Whether the device fetches it by itself, after all that it was asked before; else the host gathers it now."""
    source = args[1] if name == "aten::copy_" else args[0]
    whole = name != "aten::copy_" or args[0].is_contiguous()
    return bool(source.is_contiguous() and whole)


def _left_under_way(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    if name == "aten::_to_copy":
        return bool(kwargs.get("non_blocking"))
    asked = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
    return bool(asked) and args[0].is_contiguous()  # else through memory that is not pinned, which is waited for


def _begun(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    if name == "aten::copy_":
        UNDER_WAY.begin(args[0], args[1].held.to(args[0].dtype))
        return args[0]
    values = args[0].held.to(kwargs.get("dtype") or args[0].dtype)
    target = torch.empty_like(values)
    UNDER_WAY.begin(target, values)
    return target


def _computed(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    there: list[PretendTensor] = []
    foreign: list[Tensor] = []

    def held(value: Any) -> Any:
        if isinstance(value, PretendTensor):
            there.append(value)
            return value.held
        if isinstance(value, Tensor):
            foreign.append(value)
        elif isinstance(value, list | tuple):
            return type(value)(map(held, value))
        return value

    inner = [held(value) for value in args]
    named = {key: held(value) for key, value in kwargs.items()}
    free = func._schema.name in COPIES or (func._schema.name in INDEXED and isinstance(args[0], PretendTensor))
    if there and not free:
        require_one_device(func, foreign)
    lies_there = bool(there)
    if kwargs.get("device") is not None:
        lies_there = torch.device(kwargs["device"]).type == NAME
        named["device"] = torch.device("cpu") if lies_there else kwargs["device"]
    out = func(*inner, **named)
    if _writes(func) and isinstance(out, Tensor):
        return args[0]  # in place: the same tensor, not a new one
    return _wrapped(out) if lies_there else out


@cache
def _writes(func: Any) -> bool:
    return any(value.alias_info is not None and value.alias_info.is_write for value in func._schema.returns)


def _wrapped(out: Any) -> Any:
    if isinstance(out, Tensor):
        return PretendTensor(out)
    return type(out)(map(_wrapped, out)) if isinstance(out, list | tuple) else out


def require_one_device(func: Any, foreign: Sequence[Any]) -> None:
    """As on CUDA only a CPU tensor without dimensions, a number, may stand beside tensors of the device."""
    for value in foreign:
        if isinstance(value, Tensor) and not isinstance(value, PretendTensor) and value.dim():
            raise RuntimeError(f"{func}: expected all tensors on {NAME}:0, found {tuple(value.shape)} on the CPU")
