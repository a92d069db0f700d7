"""What a storage is: settings that say how finished chunks are kept, and make a layer's tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from ...errors import require_finite
from ...fields import require_types
from ...options import option
from ..spec import KVSpec
from .codec import Codec
from .packed import PackedTokens, Packing
from .tokens import LayerTokens, Place, Room, Scratch


@dataclass(frozen=True)
class Storage(ABC):
    """Base of all storages. A subclass has a ``name``, its settings as fields, and :meth:`tokens`."""

    name: ClassVar[str]
    packs: ClassVar[bool] = False
    """Whether finished chunks are changed, so that what is read must be made first."""

    def __post_init__(self) -> None:
        require_types(self)

    @abstractmethod
    def tokens(self, spec: KVSpec, room: Room, place: Place, scratch: Scratch) -> LayerTokens:
        """Room for one layer. SettingError when the settings do not fit the model."""


@dataclass(frozen=True)
class Packed(Storage):
    """Base of those that pack tokens when their chunk is finished; active chunks are always held as computed.

    ``exact_sink`` and ``exact_recent``: finished chunks at the start, and the newest ones, that stay as computed, in
    units of the largest chunk. Under a content-based compressor each head counts its own tokens from either end.
    """

    packs: ClassVar[bool] = True

    exact_sink: float = option(
        0.0,
        "Finished chunks at the start of the video that are not packed.",
        minimum=0.0,
        maximum=1000.0,
        step=0.25,
        place=1,
        optional=True,
        advanced=True,
    )
    exact_recent: float = option(
        0.0,
        "Newest finished chunks that are not packed yet.",
        minimum=0.0,
        maximum=1000.0,
        step=0.25,
        place=1,
        optional=True,
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_finite("exact_sink", self.exact_sink, minimum=0.0)
        require_finite("exact_recent", self.exact_recent, minimum=0.0)

    @abstractmethod
    def codecs(self, head_dim: int, chunk_tokens: int) -> tuple[Codec, Codec, int]:
        """For keys and for values, and the most tokens of a group; SettingError when ``head_dim`` does not fit."""

    def tokens(self, spec: KVSpec, room: Room, place: Place, scratch: Scratch) -> LayerTokens:
        keys, values, group = self.codecs(spec.head_dim, room.largest_chunk)
        sink, recent = (round(chunks * room.largest_chunk) for chunks in (self.exact_sink, self.exact_recent))
        return PackedTokens(spec, room, place, scratch, Packing(keys, values, group, sink, recent))
