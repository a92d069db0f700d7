"""A run in which the heads of the user's model are measured: what it keeps, and what is shown of it."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
from torch import Tensor

from ....flowcache_core.architecture import architecture_of
from ....flowcache_core.calibrate.head_samples import Place
from ....flowcache_core.calibrate.measured_heads import MeasuredHeads, MeasureHeads
from ....flowcache_core.denoiser import Denoiser
from ....flowcache_core.engine import EngineSettings
from ....flowcache_core.errors import require
from ....flowcache_core.kv.spec import KVSpec
from ....flowcache_core.report.progress import time_left
from ..files.weights_of import identity
from ..naming import naming
from ..shown.running_node import show_text
from .recorded import model_name
from .sparse import NAME

DIGITS = 7  # hexadecimal, of what names a video or a file: 28 bits, as far as whole numbers go in settings


@dataclass
class MeasuredRun:
    """Heads measured in the first window of one run. places: where."""

    heads: MeasuredHeads
    places: tuple[Place, ...]

    @classmethod
    def of(
        cls,
        measure: MeasureHeads | None,
        engines: Sequence[EngineSettings],
        spec: KVSpec,
        patcher: Any,
        guidance: float,
        video: Iterable[object],
        on_ranks: bool = False,
    ) -> MeasuredRun | None:
        """None where nothing is measured. video: all that makes this video another one than the last, tensors among it.

        SettingError in the node's name where nothing can be measured.
        """
        if measure is None:
            return None
        engine = engines[0]
        plan = engine.plan
        with naming(NAME):
            require(not on_ranks, "model", "a model on several ranks", "one without FlowCache Multi-GPU")
            measure.check(engine.attention)
            subject = measure.subject(identity(patcher), spec)
            alike = (
                subject,
                plan.name,
                plan.frames,
                engine.schedule.sigmas,
                spec.tokens_per_frame,
                guidance,
            )
            evidence = {
                "model": model_name(patcher),
                "architecture": architecture_of(patcher.model.diffusion_model),
                "plan": plan.name,
                "chunks": len(plan.chunks),
                "steps": plan.steps,
                "guidance": guidance,
                "tokens_per_frame": spec.tokens_per_frame,
                "dense_chunks": measure.dense_chunks,
                "dense_steps": measure.dense_steps,
            }
            path = folder() / f"{Path(model_name(patcher)).stem[:40]}-{digest(alike)}.heads.json"
            heads = MeasuredHeads.resumed(subject, evidence, int(digest(video), 16), path)
            kv = engine.kv.settled(spec, plan)
            return cls(heads, measure.places(plan, spec.tokens_per_frame, kv, heads.number, engine.recache))

    @property
    def note(self) -> str:
        """What is said before the first step."""
        forwards, known = self.heads.errors.subject.cells * len(self.places), self.heads.videos
        videos = f"{known} video{'s' * (known != 1)}"
        earlier = f"; earlier runs of this kind count too ({videos})" if known else ""
        return (
            f"heads are measured at {len(self.places)} steps: {forwards} more forwards of a chunk, kept as they come, "
            f"so that a run which is stopped goes on with the same seed{earlier}"
        )

    def around(self, denoiser: Any, rewind: Callable[[], Callable[[], None]] = lambda: lambda: None) -> Denoiser:
        """``denoiser`` with the measurements in it."""
        begun = time.monotonic()

        def tell(done: int, total: int) -> None:
            left = time_left(done, total, time.monotonic() - begun)
            text = f"heads: {done} of {total} measured, {left} left"
            logging.info("FlowCache: %s", text)
            show_text(text)
            comfy.model_management.throw_exception_if_processing_interrupted()

        return self.heads.measuring(denoiser, self.places, tell, rewind)


def folder() -> Path:
    """Of what is measured, in the host's user folder."""
    return Path(folder_paths.get_user_directory()) / "default" / "flowcache" / "measured"


def digest(parts: Iterable[object]) -> str:
    """Hexadecimal; tensors count by their values."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            found.update(part.detach().float().cpu().contiguous().numpy().tobytes())
        else:
            found.update(repr(part).encode())
    return found.hexdigest()[:DIGITS]


def texts_of(conds: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Tensor]:
    """The encoded prompts of a guider, in their order."""
    entries = [entry.get("cross_attn") for name in sorted(conds) for entry in conds[name] or ()]
    return [text for text in entries if isinstance(text, Tensor)]
