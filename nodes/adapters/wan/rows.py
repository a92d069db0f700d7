"""Some tokens of a chunk through the host's blocks: gathered at the first, scattered at the last, by replacements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ....flowcache_core.rows import Rows
from ..run.foreign import FUNCTIONS, around, compiles


@dataclass
class RowsOnly:
    """One guider call's block replacements. blocks: of the model. The time's modulation is the same for all tokens."""

    rows: Rows
    blocks: int
    whole: Tensor | None = field(default=None, init=False)
    angles: tuple[Tensor, Tensor] | None = field(default=None, init=False)

    def replacements(self) -> dict[str, Any]:
        """For ``patches_replace`` of the transformer options."""
        return {"dit": {("double_block", index): self.block(index) for index in range(self.blocks)}}

    def block(self, index: int) -> Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]:
        def run(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
            places, tokens = self.rows.on(args["img"].device), args["img"]
            if index == 0:
                self.whole, tokens = tokens, tokens[:, places]
            part = {**args, "img": tokens, "pe": self.rotations(args["pe"], places)}
            out = extra["original_block"](part)
            if index == self.blocks - 1:
                assert self.whole is not None
                out, self.whole = {**out, "img": self.whole.index_copy(1, places, out["img"])}, None
            return out

        return run

    def rotations(self, table: Tensor, places: Tensor) -> Tensor:
        """The rows' own, gathered once for all blocks of a model call."""
        if self.angles is None or self.angles[0] is not table:
            self.angles = table, table[:, places]
        return self.angles[1]


def takes_rows(model_options: Mapping[str, Any]) -> bool:
    """Whether a chunk may be computed in part: nothing of other nodes looks at its tokens as a grid, takes statistics
    over them, or has traced them in one shape. Where something does, the step is computed whole.
    """
    options = model_options.get("transformer_options", {})
    foreign = (
        options.get("patches_replace"),
        options.get("patches"),
        any(model_options.get(function) for function in FUNCTIONS),
        any(around(model_options)),
        compiles(model_options),
    )
    return not any(foreign)
