"""Reading weight files without running code from them, and filling a module with exactly what it needs."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import Found, SettingError, listed, require
from ...reading.limits import NESTED
from ...reading.regular_file import require_file
from ...reading.safetensors_file import looks_like_safetensors, read_safetensors
from ...reading.tensors import require_plain
from ...reading.torch_file import OLD, ZIP, read_torch

ACCEPTED = "a complete .safetensors file, or a .pt / .pth file that holds nothing but tensors"
WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Where trainers put the weights inside a file, best first: averaged weights before raw ones.
NESTED_NAMES = ("generator_ema", "generator", "model_ema", "ema", "state_dict", "model", "module")
# How files begin that are often taken for weights: what they are, and what to do.
OTHER_FILES: tuple[tuple[bytes, str, str], ...] = (
    (b"GGUF", "packed weights ('.gguf')", "the same model as .safetensors (bf16, fp16 or scaled fp8)"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "the file that `git lfs pull` fetches"),
    (b"<", "a web page or XML, not the file itself", "the file behind the page's download link"),
    (b"\x89HDF", "an HDF5 file", ACCEPTED),
    (b"\x1f\x8b", "a gzip archive", "the weight file inside it"),
    (b"7z\xbc\xaf", "a 7z archive", "the weight file inside it"),
    (b"{", "JSON", "the weights beside it"),
    (b"\x93NUMPY", "a numpy array", ACCEPTED),
)


def read_state_dict(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of a weight file, on the CPU, and its text metadata (empty for .pt / .pth).

    The content decides what kind of file it is, not the name. SettingError when it is absent, cut short, of another
    kind, or a pickle that holds more than tensors. Logs which parts of a trainer's checkpoint are left out.
    """
    path = Path(path)
    field = f"checkpoint {path.name}"
    size = require_file(path, field, ACCEPTED)
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError as error:
        raise SettingError(field, Found(f"unreadable: {error.strerror or error}"), ACCEPTED) from error
    if not looks_like_safetensors(start, size):
        refuse_other_files(start, field)
    if looks_like_safetensors(start, size) or (path.suffix == ".safetensors" and not start.startswith((ZIP, OLD))):
        tensors, metadata = read_safetensors(path, size, field, ACCEPTED)
    else:
        tensors, metadata = innermost(read_torch(path, size, field, ACCEPTED), field), {}
    require_plain(tensors, field)
    return tensors, metadata


def refuse_other_files(start: bytes, field: str) -> None:
    """SettingError naming what a file that begins so is, when it is a known kind without weights for us."""
    for magic, kind, accepted in OTHER_FILES:
        require(not start.startswith(magic), field, Found(kind), accepted)


def innermost(content: Any, field: str) -> dict[str, Tensor]:
    """The state dict inside whatever a trainer put around it; SettingError when there is none.

    Logs what else the file holds: other networks, the optimiser.
    """
    left: list[str] = []
    for _ in range(NESTED):
        if not isinstance(content, Mapping):
            raise SettingError(field, Found(f"a {type(content).__name__}, no dictionary of tensors"), ACCEPTED)
        wrong = [key for key in content if not isinstance(key, str)]
        require(not wrong, f"{field}, name of a tensor", wrong[:1], "a text")
        inner = [key for key, value in content.items() if isinstance(value, Mapping)]
        tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
        chosen = next((name for name in NESTED_NAMES if name in inner), None)
        if chosen is None and not tensors and len(inner) == 1:
            (chosen,) = inner
        if chosen is None:
            break
        left += [key for key in content if key != chosen]
        content = content[chosen]
    else:
        raise SettingError(field, Found(f"dictionaries nested more than {NESTED} deep"), ACCEPTED)
    others = [key for key in content if key not in tensors]
    require(not others, field, Found(f"a dictionary with other things in it: {listed(others)}"), ACCEPTED)
    require(bool(tensors), field, Found("an empty dictionary"), ACCEPTED)
    if left:
        logging.getLogger(__name__).warning("%s: not read: %s", field, listed(left))
    return tensors


def misfits(
    wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], dtypes: Collection[torch.dtype] = WEIGHT_DTYPES
) -> dict[str, list[str]]:
    """What keeps ``given`` from being tensors of exactly the names and shapes of ``wanted``: kind of fault -> keys."""
    found = {key: tensor for key, tensor in given.items() if key in wanted}
    problems = {
        "missing": (key for key in wanted if key not in found),
        "misshapen": (
            f"{key} {list(tensor.shape)}, not {list(wanted[key].shape)}"
            for key, tensor in found.items()
            if tensor.shape != wanted[key].shape
        ),
        "not fp32, bf16 or fp16": (
            f"{key} ({str(tensor.dtype).removeprefix('torch.')})"
            for key, tensor in found.items()
            if tensor.dtype not in dtypes
        ),
        "of another architecture": (key for key in given if key not in wanted),
    }
    return {problem: names for problem, keys in problems.items() if (names := list(keys))}


def require_fit(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], path: str | Path, kind: str) -> None:
    """SettingError unless ``given`` are plain floating-point tensors of exactly the names and shapes of ``wanted``.

    It names the first few keys that are missing, misshapen, not in a plain floating dtype, or too many.
    """
    field = f"checkpoint {Path(path).name}"
    require_plain(given, field)
    for problem, keys in misfits(wanted, given).items():
        accepted = f"weights of a {kind} under its official key names, in fp32, bf16 or fp16"
        raise SettingError(field, Found(f"{problem}: {listed(keys)}"), accepted)


def load_strict(module: nn.Module, state_dict: Mapping[str, Tensor], path: str | Path) -> None:
    """Make ``state_dict``'s tensors the parameters of ``module`` (which may be on the meta device).

    SettingError as of :func:`require_fit`.
    """
    require_fit(module.state_dict(), state_dict, path, type(module).__name__)
    module.load_state_dict(dict(state_dict), strict=True, assign=True)
