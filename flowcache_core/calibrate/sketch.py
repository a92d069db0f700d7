"""Short stand-ins for long vectors that keep the length of every sum of them: signed sums over fixed groups of values.

Sketching is linear, so what a forecast's error is made of (a small difference of large velocities) keeps its *relative*
accuracy: the mean square of any combination comes out with a standard deviation of ``sqrt(2 / SIZE)``, 1.1 % per chunk,
where a rounding of each velocity to 16 bits would leave an absolute error that drowns small differences.
(Alon, Matias, Szegedy 1996; Charikar, Chen, Farach-Colton 2002.)
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 16384


@dataclass
class Sketch:
    """``[B, values]`` to ``[B, min(values, SIZE)]``, at least fp32, on the same device, without a sync.

    Up to SIZE values are taken as they are. Neighbouring values fall into different groups, so that what is
    concentrated in one place is not summed up alone.
    """

    signs: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, rows: Tensor) -> Tensor:
        rows, values = rows.to(torch.promote_types(rows.dtype, torch.float32)), rows.shape[1]
        if values <= SIZE:
            return rows
        key = (values, rows.device)
        if key not in self.signs:
            self.signs[key] = random_signs(values).to(rows.device)
        signed = F.pad(rows * self.signs[key], (0, -values % SIZE))
        return signed.unflatten(1, (-1, SIZE)).sum(1)


def random_signs(count: int) -> Tensor:
    """The same ``count`` values of -1 and 1 on every machine, int8."""
    words = np.random.PCG64(20260210).random_raw(-(-count // 64))
    bits = np.unpackbits(np.asarray(words, dtype="<u8").view(np.uint8))[:count]
    return torch.from_numpy(bits.astype(np.int8) * 2 - 1)
