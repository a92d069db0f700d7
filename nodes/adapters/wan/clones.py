"""The host's clones of a model on other devices ("MultiGPU CFG Split"): each runs some conditionings of the guider."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from ....flowcache_core.engine import EngineSettings
from ....flowcache_core.errors import require
from .attention import Forward, attached
from .rope import exact_positions

CLONES = "multigpu_clones"
"""Where the host keeps them, by device."""


def others(options: Mapping[str, Any], model: Any) -> dict[Any, Any]:
    """Transformers of the clones, by device; the model itself is among the host's and not among these."""
    found = {device: patcher.model for device, patcher in options.get(CLONES, {}).items()}
    return {device: clone.diffusion_model for device, clone in found.items() if clone is not model}


@contextmanager
def all_attached(clones: Mapping[Any, Any]) -> Iterator[dict[Any, Sequence[Forward]]]:
    """As :func:`.attention.attached`, for every clone."""
    with ExitStack() as stack:
        found: dict[Any, Sequence[Forward]] = {}
        for device, transformer in clones.items():
            stack.enter_context(exact_positions(transformer))
            found[device] = stack.enter_context(attached(transformer))
        yield found


def check_clones(clones: Mapping[Any, Any], engines: Sequence[EngineSettings]) -> None:
    """SettingError for what works with one model only."""
    if not clones:
        return
    one = engines[0]
    causal = "block-causal with several GPUs: a whole window is one call, which is not split"
    require(one.attention == "block-causal", "attention", one.attention, causal)
    require(one.sparse is None, "model", "sparse attention on several GPUs", "one of the two")
    accepted = "another with several GPUs: residuals are caught on one model"
    require(not one.quantity.needs_residual, "quantity", one.quantity.name, accepted)
