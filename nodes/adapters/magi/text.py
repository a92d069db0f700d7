"""Prompts for MAGI-1: T5 v1.1 XXL states from the host's text encoder, special tokens, one caption per chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths
import torch
from torch import Tensor

from ....flowcache_core.errors import SettingError, require
from ....flowcache_core.models.magi.caption_cleaning import clean_caption
from ....flowcache_core.models.magi.denoiser import Caption
from ....flowcache_core.models.magi.text import TEXT_DIM, TEXT_LEN, SpecialTokens, TokenSwitches, load_special_tokens
from ..run.prompt_schedule import Entry, prompts_of

KEY = "flowcache_magi"
TOKENIZER = "t5xxl"
PAD, END = 0, 1
TABLE_FILE = "special_tokens.npz"
TABLE_FOLDERS = ("text_encoders", "diffusion_models")
NO_TABLE = "none"
ENCODER = "T5 v1.1 XXL (t5xxl_fp16, t5xxl_fp8_e4m3fn ...) from Load CLIP with type pixart or mochi"
OTHERS = {"area": "an area", "control": "a ControlNet", "gligen": "GLIGEN", "timestep_start": "a range of noise levels"}


@dataclass(frozen=True)
class ChunkTokens:
    """What stands before a prompt; it differs from chunk to chunk. Carried by a conditioning entry."""

    table: SpecialTokens
    switches: TokenSwitches

    def before(self, states: Tensor, chunk: int, chunks: int) -> Tensor:
        """States ``[n, dim]`` with the tokens of chunk ``chunk`` of ``chunks`` in front."""
        return torch.cat((*(row.to(states) for row in self.switches.rows(self.table, chunk, chunks)), states))


def encode(clip: Any, prompt: str) -> Tensor:
    """States ``[1, n, 4096]`` of the cleaned prompt, n <= 800 without padding (a T5 state sees no padding).

    SettingError naming the encoder that was given when it is not a T5 XXL on its own.
    """
    tokens = clip.tokenize(clean_caption(prompt))
    found = ", ".join(tokens) if isinstance(tokens, Mapping) else type(tokens).__name__
    require(isinstance(tokens, Mapping) and list(tokens) == [TOKENIZER], "clip", f"an encoder {found}", ENCODER)
    numbers = [token[0] for section in tokens[TOKENIZER] for token in section]
    words = [number for number in numbers if not isinstance(number, int) or number not in (PAD, END)]
    whole = [(number, 1.0) for number in (*words[: TEXT_LEN - 1], END)]
    states: Tensor = clip.encode_from_tokens({TOKENIZER: [whole]})
    require(states.shape[-1] == TEXT_DIM, "clip", f"a T5 of width {states.shape[-1]}", f"width {TEXT_DIM}: {ENCODER}")
    return states


def tables() -> list[str]:
    """Special token tables below the host's model folders, as ``folder/path`` names; "none" first."""
    return [NO_TABLE, *(name for name, _ in _table_files())]


def read_table(name: str) -> SpecialTokens | None:
    """SettingError when it is not listed, or not the table that MAGI-1 ships."""
    if name == NO_TABLE:
        return None
    paths = dict(_table_files())
    require(name in paths, "special_tokens", name, f"none, or a {TABLE_FILE} below models/{TABLE_FOLDERS[0]}")
    return load_special_tokens(paths[name])


def _table_files() -> Iterator[tuple[str, Path]]:
    for folder in TABLE_FOLDERS:
        for root in folder_paths.get_folder_paths(folder):
            for path in sorted(Path(root).rglob(TABLE_FILE)):
                yield f"{folder}/{path.relative_to(root).as_posix()}", path


def conditioning(
    encoded: Callable[[], Tensor], table: SpecialTokens | None, switches: TokenSwitches
) -> list[list[Any]]:
    """The host's CONDITIONING of ``encoded()``. SettingError, before encoding, when switches are on without a table."""
    if table is None:
        require(not switches.any, "special_tokens", NO_TABLE, f"{TABLE_FILE} of MAGI-1, or all of its switches off")
        return [[encoded(), {}]]
    return [[encoded(), {KEY: ChunkTokens(table, switches)}]]


@dataclass(frozen=True)
class ChunkCaptions(Mapping[int, Caption]):
    """Chunk -> caption ``[1, n, dim]`` and mask ``[1, n]``, made when asked for: all at once would fill the memory.

    entries: the positive conditioning as the host processed it. chunks: of the whole video; ``first`` of them are given
    clean and have no caption of their own. dim, length: of the model.
    """

    entries: Sequence[Entry]
    chunks: int
    first: int
    dim: int
    length: int
    model_sampling: Any

    def __post_init__(self) -> None:
        for chunk in range(self.first, self.chunks):
            self.entry(chunk)

    def __getitem__(self, chunk: int) -> Caption:
        chunk = max(chunk, self.first)
        entry = self.entry(chunk)
        states = entry["cross_attn"][0]
        if entry.get("attention_mask") is not None:
            states = states[entry["attention_mask"].reshape(-1)[: len(states)].bool()]
        if KEY in entry:
            states = entry[KEY].before(states, chunk - self.first, self.chunks - self.first)
        states = states[: self.length]
        return states[None], states.new_ones(1, len(states))

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.chunks))

    def __len__(self) -> int:
        return self.chunks

    def entry(self, chunk: int) -> Entry:
        """The one prompt of a chunk; SettingError when there are several, or it is not for this model."""
        found = prompts_of(self.entries, chunk, self.model_sampling)
        require(len(found) == 1, "positive", f"{len(found)} prompts for chunk {chunk}", "one (see AR Prompt Schedule)")
        (entry,) = found
        for key, what in OTHERS.items():
            if entry.get(key) is not None:
                raise SettingError("positive", f"conditioning with {what}", "conditioning without: chunks share one")
        states = entry.get("cross_attn")
        shape = None if states is None else tuple(states.shape)
        accepted = f"[1, n, {self.dim}], from MAGI-1 Prompt" if self.dim == TEXT_DIM else f"[1, n, {self.dim}]"
        require(
            shape is not None and len(shape) == 3 and shape[0] == 1 and shape[2] == self.dim,
            "positive",
            shape,
            accepted,
        )
        return entry
