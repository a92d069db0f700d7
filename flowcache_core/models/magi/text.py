"""MAGI-1's text side after the text encoder: special tokens, one caption per chunk, the null caption.

Captions are T5 v1.1 XXL states ``[n, 4096]`` with a mask ``[n]`` of 0 and 1; rows with 0 are never seen. The special
tokens are learned rows in the same space, read from the ``special_tokens.npz`` that MAGI-1 ships.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...errors import Found, require, require_count
from ...reading.npz_file import read_tables

TEXT_DIM = 4096
TEXT_LEN = 800
NULL_TOKENS = 50
TABLE = {"caption_token": 1, "logo_token": 1, "other_tokens": 100}
# Rows of other_tokens.
TRANSITION, HQ, STATIC, DYNAMIC, BORDERS, FIRST_DURATION, THREE_D, TWO_D_ANIME = 0, 1, 2, 3, 4, 7, 15, 16
DURATIONS = 8


@dataclass(frozen=True)
class SpecialTokens:
    """The table: ``caption [1, dim]``, ``logo [1, dim]`` and ``other [100, dim]``, values of fp16 precision as fp32."""

    caption: Tensor
    logo: Tensor
    other: Tensor

    def row(self, index: int) -> Tensor:
        return self.other[index : index + 1]

    def duration(self, chunk: int, chunks: int) -> Tensor:
        """Row that says how many chunks are left, this one included, up to 8: ``[1, dim]``."""
        require_count("chunk", chunk, minimum=0, maximum=chunks - 1)
        return self.row(FIRST_DURATION + min(chunks - 1 - chunk, DURATIONS - 1))


@dataclass(frozen=True)
class TokenSwitches:
    """Which special tokens stand before the caption. The released scripts set ``hq`` and ``duration``."""

    static: bool = False
    dynamic: bool = False
    borders: bool = False
    hq: bool = True
    three_d: bool = False
    two_d_anime: bool = False
    duration: bool = True

    def rows(self, tokens: SpecialTokens, chunk: int, chunks: int) -> list[Tensor]:
        """The chosen tokens ``[1, dim]`` in the order in which they stand before the caption of a chunk."""
        order = {
            "static": STATIC,
            "dynamic": DYNAMIC,
            "borders": BORDERS,
            "hq": HQ,
            "three_d": THREE_D,
            "two_d_anime": TWO_D_ANIME,
        }
        chosen = [tokens.row(row) for name, row in order.items() if getattr(self, name)]
        if self.duration:
            chosen.append(tokens.duration(chunk, chunks))
        return chosen[::-1]  # each one is put before those already there

    @property
    def any(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))


def load_special_tokens(path: str | Path, dim: int = TEXT_DIM) -> SpecialTokens:
    """Read the table; SettingError naming what the file holds when it is not the one that MAGI-1 ships."""
    path = Path(path)
    field, shapes = f"special tokens {path.name}", {name: (count, dim) for name, count in TABLE.items()}
    accepted = "special_tokens.npz of MAGI-1 with " + ", ".join(f"{n} {c} x {dim}" for n, c in TABLE.items())
    arrays = read_tables(path, shapes, field, accepted)
    # The original goes through fp16.
    with np.errstate(over="ignore"):
        tensors = {name: torch.from_numpy(arrays[name].astype(np.float16)).float() for name in TABLE}
    for name, tensor in tensors.items():
        require(bool(tensor.isfinite().all()), f"{field}, {name}", Found("values that are not finite"), accepted)
    return SpecialTokens(*tensors.values())


def fit_caption(caption: Tensor, mask: Tensor | None = None, length: int = TEXT_LEN) -> tuple[Tensor, Tensor]:
    """States ``[length, dim]`` and mask ``[length]`` of an encoded prompt ``[n, dim]``: cut, or filled up unseen."""
    if mask is None:
        mask = caption.new_ones(caption.shape[0])
    ok = caption.dim() == 2 and mask.shape == caption.shape[:1]
    require(ok, "caption", (tuple(caption.shape), tuple(mask.shape)), "states [n, dim] and a mask [n]")
    caption, mask = caption[:length], mask[:length].to(caption.dtype)
    missing = length - caption.shape[0]
    filled = torch.cat((caption, caption.new_zeros(missing, caption.shape[1])))
    return filled, torch.cat((mask, mask.new_zeros(missing)))


def chunk_captions(
    caption: Tensor,
    mask: Tensor,
    chunks: int,
    tokens: SpecialTokens | None = None,
    switches: TokenSwitches | None = None,
    dim: int = TEXT_DIM,
    length: int = TEXT_LEN,
) -> tuple[Tensor, Tensor]:
    """Captions ``[chunks, length, dim]`` and masks ``[chunks, length]`` of the chunks to be generated.

    caption, mask: the encoded prompt ``[n, dim]``, ``[n]``. Special tokens shift it right; what passes ``length`` is
    cut. No tokens without ``tokens``; SettingError when the encoder is of another size, or tokens are switched on
    without a table.
    """
    require_count("chunks", chunks, minimum=1)
    accepted = f"[n, {dim}], as T5 v1.1 XXL encodes a prompt"
    require(caption.dim() == 2 and caption.shape[-1] == dim, "caption", tuple(caption.shape), accepted)
    switches = switches or TokenSwitches(hq=tokens is not None, duration=tokens is not None)
    if tokens is None:
        require(not switches.any, "special tokens", switches, "special_tokens.npz, or all switches off")
    parts = []
    for chunk in range(chunks):
        rows = [] if tokens is None else [row.to(caption) for row in switches.rows(tokens, chunk, chunks)]
        states = torch.cat((*rows, caption))
        parts.append(fit_caption(states, torch.cat((mask.new_ones(len(rows)), mask)), length))
    return torch.stack([states for states, _ in parts]), torch.stack([kept for _, kept in parts])


def null_caption(embedding: Tensor, tokens: SpecialTokens | None = None) -> tuple[Tensor, Tensor]:
    """Caption and mask of the branches without text: the model's learned rows ``[n, dim]``, of which 50 are seen.

    With ``tokens`` the negative ones (borders, transition, logo, caption, in this order) stand before it and take four
    of the 50 places, as the original's negative prompt does. The mask lies on the CPU: it is known there.
    """
    length = embedding.shape[0]
    if tokens is not None:
        negative = (tokens.row(BORDERS), tokens.row(TRANSITION), tokens.logo, tokens.caption)
        embedding = torch.cat((*(row.to(embedding) for row in negative), embedding))[:length]
    mask = torch.zeros(length, dtype=embedding.dtype, device="cpu")
    mask[:NULL_TOKENS] = 1
    return embedding, mask
