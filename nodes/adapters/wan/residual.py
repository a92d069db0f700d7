"""What the transformer blocks add to the tokens, taken and put back through the host's block replacements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Replacement = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]


@dataclass
class Residuals:
    """Residuals of one guider call; the host may split branches over several model calls, always in the same order."""

    blocks: int
    taken: list[Tensor] = field(default_factory=list)
    entered: Tensor | None = None

    def capturing(self, transformer_options: Mapping[str, Any]) -> dict[str, Any]:
        """``patches_replace`` that notes what the blocks add; replacements of other packs still run inside."""
        replace = dict(transformer_options.get("patches_replace", {}))
        blocks = dict(replace.get("dit", {}))
        first, last = ("double_block", 0), ("double_block", self.blocks - 1)

        def enter(before: Replacement | None) -> Replacement:
            def block(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
                self.entered = args["img"]
                return call(before, args, extra)

            return block

        def leave(before: Replacement | None) -> Replacement:
            def block(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
                out = call(before, args, extra)
                self.taken.append(out["img"] - self.entered)
                self.entered = None
                return out

            return block

        blocks[first] = enter(blocks.get(first))
        blocks[last] = leave(blocks.get(last))
        return {**replace, "dit": blocks}

    def take(self) -> Tensor:
        """Residuals of all branches ``[branches * B, tokens, dim]`` in the order of the model calls."""
        return torch.cat(self.taken)

    def replacing(self, residual: Tensor) -> dict[str, Any]:
        """``patches_replace`` that skips every block and adds ``residual`` instead."""
        position = 0

        def skip(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
            return {"img": args["img"]}

        def add(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
            nonlocal position
            rows = args["img"].shape[0]
            part = residual[position : position + rows]
            position += rows
            return {"img": args["img"] + part}

        blocks: dict[tuple[str, int], Replacement] = {("double_block", index): skip for index in range(self.blocks)}
        blocks["double_block", self.blocks - 1] = add
        return {"dit": blocks}


def call(before: Replacement | None, args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    return extra["original_block"](args) if before is None else before(args, extra)
