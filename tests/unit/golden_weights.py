"""Random weights of the MAGI golden data, drawn again from their seeds (tests/golden/README.md says how they came).

They were drawn with ``torch.randn``, whose last bits depend on the processor. So the same stream of whole numbers is
drawn here (MT19937, from NumPy, which keeps it as it is for good), made normal in float64, and rounded to bf16. Where
the original rounded to the other neighbour the data says so.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from flowcache_core.models.magi import layers
from flowcache_core.models.magi.config import MagiConfig
from flowcache_core.models.magi.transformer import MagiTransformer

MAGI = MagiConfig(384, 128, 2, 24, 8, 16, 96, text_dim=32, text_len=60, bands=2)
MAGI_DIGEST = "b8c2f7969d149e9d7269ea41c308af115464b0150a86bcea5c88f29a5021b9e8"
RAISED = (12, 106)
FIXED_STD = (  # everything else: 1 / sqrt(inputs) for matrices
    (("x_embedder", "t_embedder", "y_proj_"), 0.12),
    (("null_caption", "cls_token", "pos_embed"), 0.5),
    (("final_linear",), 0.05),
    (("decoder.last_layer.weight",), 0.06),
)


def draw(module: torch.nn.Module, seed: int, bias_std: float, data: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of ``module`` in the order of its parameters, values exactly bf16, as fp32; the same on every machine.

    data: golden file with ``weights.place [n]``, in all values end to end, and ``weights.value [n]`` (bf16) of those
    that the original rounded otherwise.
    """
    source = np.random.RandomState(seed)
    sizes = {name: parameter.shape for name, parameter in module.named_parameters()}
    drawn = [_values(name, torch.from_numpy(_normal(source, shape)), bias_std) for name, shape in sizes.items()]
    flat = torch.cat([values.flatten() for values in drawn]).bfloat16()
    flat[data["weights.place"].long()] = data["weights.value"]
    parts = flat.float().split([shape.numel() for shape in sizes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(sizes.items(), parts, strict=True)}


def magi_transformer(data: Mapping[str, Tensor]) -> MagiTransformer:
    """The transformer of the golden data, frozen. data: ``magi_dit.safetensors``."""
    model = MagiTransformer(MAGI)
    weights = draw(model, seed=11, bias_std=0.1, data=data)
    assert digest(weights) == MAGI_DIGEST, "the stored outputs belong to other weights"
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def as_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time embedding as on the machine that made the MAGI data: two rates one bit larger."""
    raised = layers.time_rates(MAGI.freq_dim // 2)
    for place in RAISED:
        raised[place] = torch.nextafter(raised[place], torch.tensor(1.0))
    monkeypatch.setattr(layers, "time_rates", lambda count, device: raised)


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of all bits as bf16, end to end."""
    flat = torch.cat([tensor.flatten() for tensor in weights.values()]).bfloat16()
    return hashlib.sha256(flat.view(torch.int16).numpy().astype("<i2").tobytes()).hexdigest()


def _normal(source: np.random.RandomState, shape: torch.Size) -> np.ndarray:
    """What ``torch.randn`` draws on a CPU, in float64: Box-Muller, with two rules for few and for many values."""
    count = math.prod(shape)
    if count < 16:
        pairs = _words(source, 4 * -(-count // 2)).astype(np.uint64).reshape(-1, 2, 2)
        whole = (pairs[..., 0] << np.uint64(32) | pairs[..., 1]) & np.uint64(2**53 - 1)
        turn, radius = np.moveaxis(whole * 2.0**-53, 1, 0)
        return _box_muller(radius, turn).T.ravel()[:count].reshape(shape)
    uniform = _unit(source, count)
    blocks = uniform[: count // 16 * 16]
    values = np.concatenate((_sixteens(blocks), uniform[len(blocks) :]))
    if count % 16:
        values[-16:] = _sixteens(_unit(source, 16))
    return values.reshape(shape)


def _words(source: np.random.RandomState, count: int) -> np.ndarray:
    return source.randint(0, 2**32, count, dtype=np.uint32)


def _unit(source: np.random.RandomState, count: int) -> np.ndarray:
    return (_words(source, count) & np.uint32(2**24 - 1)) * 2.0**-24


def _sixteens(uniform: np.ndarray) -> np.ndarray:
    """Eight radii and eight turns become sixteen values."""
    radius, turn = np.moveaxis(uniform.reshape(-1, 2, 8), 1, 0)
    return np.moveaxis(_box_muller(radius, turn), 0, 1).ravel()


def _box_muller(radius: np.ndarray, turn: np.ndarray) -> np.ndarray:
    length, angle = np.sqrt(-2 * np.log1p(-radius)), 2 * np.pi * turn
    return np.stack((length * np.cos(angle), length * np.sin(angle)))


def _values(name: str, noise: Tensor, bias_std: float) -> Tensor:
    if name == "rope.bands":
        return 10000.0 ** (-torch.arange(len(noise), dtype=torch.float64) / len(noise)) * (1 + 0.05 * noise)
    if name.endswith("bias"):
        return bias_std * noise
    if "norm" in name:  # stored as an offset from one, but for the plain pre-norms and the VAE's
        plain = "layer_norm" in name or name.startswith(("encoder", "decoder"))
        return float(plain) + 0.1 * noise
    std = next((std for parts, std in FIXED_STD if any(part in name for part in parts)), None)
    return noise * (1 / math.sqrt(noise[0].numel()) if std is None else std)
