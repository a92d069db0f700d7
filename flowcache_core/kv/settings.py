"""What a user decides about the K/V cache: budget, compressor, storage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..errors import SettingError, require, require_finite
from ..fields import require_types
from ..plan.base import Plan
from .compressor import Compressor
from .layout import history_frames, largest_chunk_frames
from .recent import Recent
from .sink_window import SinkWindow
from .spec import KVSpec
from .storage import Plain, Storage

STORAGE_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn)


def default_compressor(budgets: Sequence[float]) -> Compressor:
    """The best on the data we measured (``bench compression``): sink and window, or, without room for both, recent."""
    sink_window = SinkWindow()
    roomy = all(one >= sink_window.min_budget for one in budgets)
    return sink_window if roomy else Recent()


@dataclass(frozen=True)
class KVSettings:
    """Immutable settings of a run's K/V cache.

    ``budget``: chunks of finished history that are kept, fractions allowed: one number, one per layer, or for a layer
    one per K/V head; None keeps everything. ``compressor`` decides what is kept; :func:`default_compressor` when only a
    budget is given. ``storage``: how finished chunks are kept. ``dtype`` of what is stored as computed (all of it in
    plain storage, the active chunks in others) and ``device`` of everything; None for the model's own. ``at_finish``:
    what exceeds the budget is dropped as soon as a chunk has finished, as FlowCache's code for SkyReels-V2 does, and
    not when the next one needs the room.
    """

    budget: float | Sequence[float | Sequence[float]] | None = None
    compressor: Compressor | None = None
    dtype: torch.dtype | None = None
    device: str | None = None
    storage: Storage = Plain()
    at_finish: bool = False

    def __post_init__(self) -> None:
        require_types(self)
        if self.budget is not None and self.compressor is None:
            object.__setattr__(self, "compressor", default_compressor(self.budgets))
        if isinstance(self.budget, Sequence):
            rows = tuple(tuple(row) if isinstance(row, Sequence) else row for row in self.budget)
            object.__setattr__(self, "budget", rows)
            whole = len(rows) > 0 and () not in rows
            require(whole, "budget", self.budget, "one number per layer, or for a layer one per K/V head")
        for budget in self.budgets:
            assert self.compressor is not None
            try:
                require_finite("budget", budget, minimum=self.compressor.min_budget)
            except SettingError as error:
                raise SettingError("budget", budget, self.compressor.accepted_budget) from error
        accepted = "None, " + ", ".join(str(dtype).removeprefix("torch.") for dtype in STORAGE_DTYPES)
        require(self.dtype is None or self.dtype in STORAGE_DTYPES, "dtype", self.dtype, accepted)
        narrow = self.storage.packs and self.dtype is not None and self.dtype.itemsize < 2
        require(not narrow, "dtype", self.dtype, f"None or 16 and 32 bits: storage {self.storage.name} packs by itself")
        ends = getattr(self.storage, "exact_sink", 0) or getattr(self.storage, "exact_recent", 0)
        accepted = "off with exact_sink or exact_recent: ends need the video's order"
        mixed = self.compressor is not None and self.compressor.reorders and ends
        require(not mixed, "reference_order", True, accepted)
        merges = self.compressor is not None and self.compressor.merges
        accepted = "plain with method merge, which makes values anew"
        require(not (merges and self.storage.packs), "storage", self.storage.name, accepted)
        narrow = merges and self.dtype is not None and self.dtype.itemsize < 2
        require(not narrow, "dtype", self.dtype, "None or 16 and 32 bits with method merge")
        try:
            torch.device(self.device or "cpu")
        except RuntimeError as error:
            raise SettingError("device", self.device, "None, cpu, cuda or another torch device") from error

    @property
    def budgets(self) -> tuple[float, ...]:
        """The numbers in ``budget``: none, one for all layers, or one per layer or head."""
        if self.budget is None:
            return ()
        rows = self.budget if isinstance(self.budget, Sequence) else (self.budget,)
        return tuple(one for row in rows for one in (row if isinstance(row, Sequence) else (row,)))

    @property
    def by_head(self) -> bool:
        """Whether heads of a layer have budgets of their own."""
        return isinstance(self.budget, Sequence) and any(isinstance(row, Sequence) for row in self.budget)

    def by_layer(self, user: str) -> KVSettings:
        """These settings for a ``user`` that reads all heads of a layer at once. SettingError for budgets of heads."""
        accepted = f"one number, or one per layer: {user} reads all heads of a layer at once"
        require(not self.by_head, "budget", "one per head", accepted)
        return self

    @property
    def bounded(self) -> bool:
        """Whether a run keeps less than everything, as far as its settings say."""
        return self.budget is not None

    @property
    def format(self) -> str:
        """How finished chunks are kept where that changes what is read: a packing storage's name, or that of a number
        format below 16 bits; empty where it is as good as computed.
        """
        if self.storage.packs:
            return self.storage.name
        narrow = self.dtype is not None and self.dtype.itemsize < 2
        return str(self.dtype).removeprefix("torch.") if narrow else ""

    def settled(self, spec: KVSpec, plan: Plan) -> KVSettings:
        """These settings for a run of this model over ``plan``."""
        return self

    def choice(self, spec: KVSpec, plan: Plan) -> str:
        """What :meth:`settled` chose, in one line; empty where there was nothing to choose."""
        return ""

    def layer_budgets(self, layers: int) -> tuple[float | None, ...]:
        """One budget for each of the model's ``layers``; SettingError when another number of them was given."""
        if not isinstance(self.budget, Sequence):
            return (self.budget,) * layers
        require(len(self.budget) == layers, "budget", self.budget, f"one number, or {layers}: one per layer")
        self.by_layer("what asks for them")
        return self.budgets

    def head_budgets(self, spec: KVSpec) -> tuple[tuple[float, ...], ...]:
        """``[layer][K/V head]`` of those heads of the model that ``spec`` has. SettingError when others were given."""
        assert isinstance(self.budget, Sequence)
        count, heads = spec.layers, spec.all_kv_heads or spec.kv_heads
        rows = [tuple(row) if isinstance(row, Sequence) else (row,) * heads for row in self.budget]
        fits = len(rows) == count and all(len(row) == heads for row in rows)
        accepted = f"{count} layers, each with one number or {heads}: one per K/V head"
        require(fits, "budget", self.budget, accepted)
        return tuple(row[spec.first_head : spec.first_head + spec.kv_heads] for row in rows)

    def sink_frames(self, plan: Plan) -> int:
        """Latent frames at the start of the video that stay whatever comes; whole chunks only."""
        if not isinstance(self.compressor, SinkWindow) or self.budget is None:
            return 0
        frames = round(self.compressor.sink * largest_chunk_frames(plan))
        return max((chunk.end_frame for chunk in plan.chunks if chunk.end_frame <= frames), default=0)

    def note(self, plan: Plan) -> str | None:
        """A sentence when these settings cannot change anything in ``plan``, None when they can."""
        if self.budget is None:
            if self.compressor is None:
                return None
            return f"compressor {self.compressor.name} without a budget: the whole history is kept, nothing to compress"
        history = history_frames(plan) / largest_chunk_frames(plan)
        if self.at_finish:
            history = sum(chunk.frames for chunk in plan.chunks[:-1]) / largest_chunk_frames(plan)
        if history == 0:
            return f"budget {self.budget}: no chunk begins after another has finished, nothing to compress"
        idle = sum(budget >= history for budget in self.budgets)
        if idle == 0:
            return None
        reason = f"not below the {history:g} finished chunks this video ever has to hold: nothing to compress"
        if len(self.budgets) == 1:
            return f"budget {self.budgets[0]:g} chunks is {reason}"
        what = "heads" if self.by_head else "layers"
        return f"the budget of {idle} of {len(self.budgets)} {what} is {reason} in them"
