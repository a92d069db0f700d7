"""Whether what was packed was finite: one value that is not spoils the scales of its whole group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...errors import NotFiniteError


@dataclass
class PackedFinite:
    """Flags of one cache's layers, found out without making anybody wait: at once on the CPU, when they have arrived on
    CUDA, and on other devices at the end of the run.
    """

    storage: str
    _unseen: list[tuple[int, Tensor, torch.cuda.Event | None]] = field(default_factory=list, init=False)

    def note(self, chunk: int, packed: Sequence[Tensor | None]) -> None:
        """By layer: whether keys and values were finite, bool ``[2]``, None where nothing was packed.

        NotFiniteError naming chunk and layer of the first known by now that were not.
        """
        some = next((flags for flags in packed if flags is not None), None)
        if some is not None and not some.is_meta:
            fine = torch.ones_like(some)
            flags, copied = torch.stack([fine if one is None else one for one in packed]), None
            if flags.device.type == "cuda":
                target = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
                target.copy_(flags, non_blocking=True)
                copied = torch.cuda.Event()
                copied.record(torch.cuda.current_stream(flags.device))
                flags = target
            self._unseen.append((chunk, flags, copied))
        while self._unseen and self._here:
            self.refuse(*self._unseen.pop(0))

    def rest(self) -> None:
        """As :meth:`note` for all not yet looked at; waits for the device."""
        while self._unseen:
            self.refuse(*self._unseen.pop(0))

    @property
    def _here(self) -> bool:
        _, flags, copied = self._unseen[0]
        return copied.query() if copied is not None else flags.device.type == "cpu"

    def refuse(self, chunk: int, flags: Tensor, copied: torch.cuda.Event | None) -> None:
        if copied is not None:
            copied.synchronize()
        for layer, found in enumerate(flags.tolist()):
            broken = " and ".join(name for name, fine in zip(("keys", "values"), found) if not fine)
            if broken:
                where = f"{broken} of chunk {chunk} in layer {layer} are NaN or infinite"
                raise NotFiniteError(f"K/V storage {self.storage}: {where}, which cannot be packed")

    def forget(self) -> None:
        self._unseen.clear()
