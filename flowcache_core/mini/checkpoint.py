"""A training's checkpoint: what is trained, its optimizers, and how far it is. Refused by name when it does not fit."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NotFiniteError, SettingError
from ..files import whole_file


@dataclass(frozen=True)
class Stand:
    """How far a training is: steps taken, seconds spent on them, running mean of the loss."""

    step: int = 0
    spent: float = 0.0
    loss: float = 1.0


def save(path: Path, parts: Mapping[str, Any], stand: Stand) -> None:
    """Write the state of every part (module or optimizer) as one whole file."""
    content = io.BytesIO()  # torch's own writer does not say why it could not write
    torch.save({**{name: part.state_dict() for name, part in parts.items()}, **asdict(stand)}, content)
    with whole_file(path, "work") as part:
        part.write_bytes(content.getbuffer())


def save_or_say(path: Path, parts: Mapping[str, Any], stand: Stand, say: Callable[[str], None]) -> None:
    """:func:`save` in the middle of a training, which goes on when the disk is full for a while."""
    try:
        save(path, parts, stand)
    except SettingError as error:
        say(f"no checkpoint at step {stand.step}: {error}")


def load(path: Path, parts: Mapping[str, Any]) -> Stand:
    """Put a checkpoint's state into ``parts``, on the devices they are on.

    SettingError naming ``resume`` when the file is missing, damaged, or of another training; the parts may then hold
    some of it already.
    """
    if not path.is_file():
        raise SettingError("resume", str(path), "a checkpoint that an earlier training left there, or no --resume")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch makes of a file that is none of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SettingError("resume", str(path), f"a checkpoint that can be read ({reason[:120]})") from error
    try:
        return _load(saved, parts)
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        accepted = f"a checkpoint of this training ({' '.join(line.strip() for line in lines[:2])[:200]})"
        raise SettingError("resume", str(path), accepted) from error


def require_finite_loss(loss: float, where: str) -> None:
    """NotFiniteError as soon as a loss is not finite: the weights no longer are, and must not be kept."""
    if not math.isfinite(loss):
        raise NotFiniteError(f"{where}: the loss is {loss}; what was written before stays, nothing of it is kept")


def _load(saved: Any, parts: Mapping[str, Any]) -> Stand:
    if not isinstance(saved, dict):
        raise ValueError("it holds no state")
    missing = [name for name in (*parts, "step", "spent") if name not in saved]
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")
    stand = Stand(saved["step"], saved["spent"], saved.get("loss", 1.0))
    whole = isinstance(stand.step, int) and not isinstance(stand.step, bool) and stand.step >= 0
    times = all(isinstance(one, int | float) and math.isfinite(one) for one in (stand.spent, stand.loss))
    if not (whole and times and stand.spent >= 0):
        raise ValueError("its step, spent or loss is no such number")
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            _require_finite(name, saved[name])
        part.load_state_dict(saved[name])
        if isinstance(part, torch.optim.Optimizer):
            _require_shapes(name, part)
    return stand


def _require_finite(name: str, state: Mapping[str, Tensor]) -> None:
    broken = [key for key, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise ValueError(f"{name} holds values that are not finite, such as {broken[0]}")


def _require_shapes(name: str, optimizer: torch.optim.Optimizer) -> None:
    """torch takes moments of any shape and fails at the first step."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for key, moment in optimizer.state.get(parameter, {}).items():
                if isinstance(moment, Tensor) and moment.ndim and moment.shape != parameter.shape:
                    raise ValueError(f"{name} holds {key} of shape {tuple(moment.shape)} for {tuple(parameter.shape)}")
