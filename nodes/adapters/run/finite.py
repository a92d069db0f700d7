"""What a run begins with must be finite: refused by the name of the field it came through."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ....flowcache_core.errors import require_finite_values


def require_finite_inputs(
    latents: Tensor, conds: Mapping[str, Sequence[Mapping[str, Any]]], names: Iterable[str]
) -> None:
    """latents: to be sampled. conds: the guider's processed conditionings; names: those that it runs."""
    require_finite_values("latent_image", latents, "latents of finite numbers only")
    for name in names:
        for entry in conds.get(name) or ():
            states = entry.get("cross_attn")
            if isinstance(states, Tensor):
                require_finite_values(name, states, "conditioning of finite numbers only")
