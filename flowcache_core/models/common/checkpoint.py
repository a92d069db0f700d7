"""Reading weight files without running code from them, and filling a module with exactly what it needs."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ...errors import SettingError

ACCEPTED = "a complete .safetensors file, or a .pt / .pth file that holds nothing but tensors"
WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Where trainers put the weights inside a file, best first: averaged weights before raw ones.
NESTED_NAMES = ("generator_ema", "generator", "model_ema", "ema", "state_dict", "model", "module")


def read_state_dict(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of a weight file, on the CPU, and its text metadata (empty for .pt / .pth).

    SettingError when the file is absent, cut short, of another kind, or a pickle that holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise SettingError(f"checkpoint {path.name}", str(path), f"an existing file: {ACCEPTED}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in (".pt", ".pth"):
        return _read_torch(path), {}
    raise SettingError(f"checkpoint {path.name}", path.suffix, ACCEPTED)


def load_strict(module: nn.Module, state_dict: Mapping[str, Tensor], path: str | Path) -> None:
    """Make ``state_dict``'s tensors the parameters of ``module`` (which may be on the meta device).

    SettingError naming the first few keys that are missing, misshapen, not in a plain floating dtype, or too many.
    """
    wanted = module.state_dict()
    found = {key: tensor for key, tensor in state_dict.items() if key in wanted}
    problems = {
        "missing": (key for key in wanted if key not in found),
        "misshapen": (
            f"{key} {list(tensor.shape)}, not {list(wanted[key].shape)}"
            for key, tensor in found.items()
            if tensor.shape != wanted[key].shape
        ),
        "not fp32, bf16 or fp16": (key for key, tensor in found.items() if tensor.dtype not in WEIGHT_DTYPES),
        "of another architecture": (key for key in state_dict if key not in wanted),
    }
    for problem, keys in problems.items():
        listed = list(keys)
        if listed:
            accepted = f"weights of a {type(module).__name__} under its official key names, in fp32, bf16 or fp16"
            raise SettingError(f"checkpoint {Path(path).name}", f"{problem}: {_first(listed)}", accepted)
    module.load_state_dict(found, strict=True, assign=True)


def _first(keys: Iterable[str], count: int = 4) -> str:
    keys = list(keys)
    more = f" and {len(keys) - count} more" if len(keys) > count else ""
    return ", ".join(keys[:count]) + more


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise SettingError(f"checkpoint {path.name}", f"unreadable: {error}", ACCEPTED) from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SettingError(f"checkpoint {path.name}", "a damaged pickle, or one that runs code", ACCEPTED) from error
    except Exception as error:  # a damaged pickle fails in whatever way its bytes say
        raise SettingError(f"checkpoint {path.name}", f"unreadable: {error}", ACCEPTED) from error
    while isinstance(content, dict):
        inner = next((content[name] for name in NESTED_NAMES if isinstance(content.get(name), dict)), None)
        if inner is None:
            break
        content = inner
    plain = isinstance(content, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    if not plain:
        raise SettingError(f"checkpoint {path.name}", f"a {type(content).__name__} with other things in it", ACCEPTED)
    return dict(content)
