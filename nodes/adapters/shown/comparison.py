"""Two runs side by side on a node: figures, video, and the one frame that differs most."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import folder_paths
from PIL import Image
from torch import Tensor

from ....flowcache_core.errors import SettingError, require
from ....flowcache_core.report.comparison import (
    Compared,
    chunk_ends,
    compared,
    costs,
    judgement,
    latent_frames_of,
    plain_steps,
)
from ....flowcache_core.report.record import RunRecord
from ....flowcache_core.report.video import even, side_by_side, write_video
from ..run.records import NoRecordError, Run, Sketch
from ..run.settings import slot_of

GAIN = 8  # of the difference shown
VIEW = 256  # pixels; smaller videos are enlarged
SAME_NOISE = 1e-4
NOTES = {
    "noise": "note: the two runs began from different noise, so the figures say nothing of reuse; take the same seed",
    "batch": "note: of the {count} videos in {name} the first is compared",
    "finite": "note: {name} has values that are not finite; they count as black, so the figures say little",
    "latest": "note: this is no output of the last runs of model_{name}; the latest of them is taken for its cost",
}


@dataclass(frozen=True)
class Side:
    """One of the two inputs: a LATENT or an IMAGE batch, and the MODEL that made it, None where none is connected."""

    name: str
    value: Any
    model: Any

    @property
    def latents(self) -> Tensor | None:
        samples = self.value.get("samples") if isinstance(self.value, Mapping) else None
        return samples if isinstance(samples, Tensor) else None

    def frames(self, vae: Any) -> Tensor:
        """``[T, H, W, 3]`` uint8, of the first video of a batch. SettingError naming the input."""
        latents = self.latents
        if latents is not None:
            require(vae is not None, "vae", None, "the model's VAE, where latents are compared")
            images = vae.decode(latents[:1])
            images = images[0] if images.ndim == 5 else images
        else:
            images = self.value
        whole = isinstance(images, Tensor) and images.ndim == 4 and images.shape[3] >= 3
        whole = whole and len(images) > 0
        require(whole, self.name, getattr(images, "shape", images), "a LATENT of a video, or IMAGE frames")
        require(min(images.shape[1:3]) >= 11, self.name, tuple(images.shape), "frames of at least 11 x 11 pixels")
        return (images[..., :3].float().nan_to_num(0).clamp(0, 1) * 255).round().byte().cpu()

    def notes(self) -> list[str]:
        """What of it is not compared, or not as it came."""
        latents = self.latents
        shown = self.value if latents is None else latents[:1]
        count = 1 if latents is None else len(latents)
        found = [NOTES["batch"].format(name=self.name, count=count)] if count > 1 else []
        return found if shown.isfinite().all() else [*found, NOTES["finite"].format(name=self.name)]

    def run(self) -> tuple[Run | None, str | None]:
        """The run that made it, or the model's latest and a note; None where no model is connected that was sampled."""
        if self.model is None:
            return None, None
        try:
            slot = slot_of(self.model)
        except NoRecordError:
            return None, None
        run = None if self.latents is None else slot.run_of(self.latents)
        if run is not None:
            return run, None
        latest = next((one for one in reversed(slot.runs) if one.record is not None), None)
        several = latest is not None and len(slot.runs) > 1
        return latest, NOTES["latest"].format(name=self.name) if several else None


@dataclass(frozen=True)
class Comparison:
    """images: ``[T, H, 3 W, 3]`` from 0 to 1. frame: reference and result where they differ most, uint8."""

    figures: Compared
    records: tuple[RunRecord | None, RunRecord | None]
    notes: tuple[str, ...]
    images: Tensor
    frame: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, reference: Side, result: Side, vae: Any, chunk_frames: int) -> Comparison:
        """SettingError naming the input that cannot be compared."""
        videos = [side.frames(vae) for side in (reference, result)]
        shapes = [tuple(video.shape) for video in videos]
        accepted = f"as many frames of the same size as the reference, {shapes[0]}"
        require(shapes[0] == shapes[1], "result", shapes[1], accepted)
        found = [side.run() for side in (reference, result)]
        notes = [*reference.notes(), *result.notes(), *(note for _, note in found if note)]
        runs = [run for run, _ in found]
        first, second = (None if run is None else run.record for run in runs)
        records = (first, second)
        if different(*(None if run is None else run.noise for run in runs)):
            notes.append(NOTES["noise"])
        ends = ends_of(len(videos[0]), records, chunk_frames)
        figures = compared(videos[1], videos[0], ends)
        apart = (videos[1].int() - videos[0].int()).abs().mul(GAIN).clamp(0, 255).byte()
        labels = ["reference", "result", f"difference x {GAIN}"]
        images = even(side_by_side([*videos, apart], labels, view_size=VIEW)).float() / 255
        worst = figures.worst_frame
        return cls(figures, records, tuple(notes), images, (videos[0][worst], videos[1][worst]))

    @property
    def text(self) -> str:
        whole, chunks = self.figures.whole, self.figures.chunks
        lines = [judgement(whole, *self.records), *self.notes, ""]
        lines += [*costs(*self.records), ""] if any(self.records) else []
        lines += [f"{'chunk':>8}{'frames':>12}{'PSNR dB':>10}{'SSIM':>9}"]
        for name, part in [*((str(number), chunk) for number, chunk in enumerate(chunks)), ("all", whole)]:
            span = f"{part.first_frame}-{part.first_frame + part.frames - 1}"
            lines.append(f"{name:>8}{span:>12}{part.psnr:10.1f}{part.ssim:9.4f}")
        return "\n".join(lines)

    @property
    def rival(self) -> int | None:
        """Plain steps that cost as much as the result; None where the result is no run with reuse."""
        result = self.records[1]
        return plain_steps(result) if result is not None and result.reused_steps else None

    @property
    def document(self) -> str:
        names = ("reference", "result")
        runs = {
            name: None
            if record is None
            else {
                "steps": record.started.steps,
                "computed_share": record.computed_share,
                "seconds": record.seconds,
                "kv_bytes": record.kv_bytes,
            }
            for name, record in zip(names, self.records, strict=True)
        }
        content = {**asdict(self.figures), "runs": runs, "plain_steps": self.rival, "notes": list(self.notes)}
        return json.dumps(content, allow_nan=False)

    def shown(self, fps: int) -> dict[str, Any]:
        """For the node: the video, and the frame that differs most. That they cannot be written fails nothing."""
        name = f"flowcache_compare_{uuid.uuid4().hex[:8]}"
        folder = Path(folder_paths.get_temp_directory())
        shown: dict[str, Any] = {"plain_steps": (self.rival,)}
        try:
            write_video(folder / f"{name}.mp4", (self.images * 255).round().byte(), fps=fps, view_size=1)
            shown |= {"images": [entry(f"{name}.mp4")], "animated": (True,)}
            pictures = []
            for side, frame in zip(("reference", "result"), self.frame, strict=True):
                Image.fromarray(frame.numpy()).save(folder / f"{name}_{side}.png")
                pictures.append(entry(f"{name}_{side}.png"))
            shown |= {"slider": pictures, "frame": (self.figures.worst_frame,)}
        except (OSError, SettingError) as error:
            logging.warning("FlowCache Compare: nothing to show on the node: %s", error)
        return shown


def entry(filename: str) -> dict[str, str]:
    """A file of the temp folder, as the host's page asks for it."""
    return {"filename": filename, "subfolder": "", "type": "temp"}


def different(one: Sketch | None, other: Sketch | None) -> bool:
    return one is not None and other is not None and not one.distance(other) <= SAME_NOISE


def ends_of(frames: int, records: tuple[RunRecord | None, RunRecord | None], chunk_frames: int) -> list[int]:
    """First frame behind each chunk: as a report has them, else all of ``chunk_frames`` latent frames."""
    for record in records:
        lengths = None if record is None else latent_frames_of(record)
        if lengths:
            tokens = sum(lengths)
            latent = (frames + 3) // 4 if frames % 4 == 1 else frames // 4
            if latent and tokens % latent == 0:
                return chunk_ends(frames, [length * latent // tokens for length in lengths])
    latent = (frames + 3) // 4 if frames % 4 == 1 else max(1, frames // 4)
    starts = range(0, latent, chunk_frames)
    return chunk_ends(frames, [min(chunk_frames, latent - start) for start in starts])
