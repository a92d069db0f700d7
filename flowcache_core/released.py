"""Few-step autoregressive Wan models as their authors sample them: one row for each.

All are Wan text-to-video blocks with a clean pass over every finished chunk, denoised one chunk after the other (Self
Forcing, arXiv 2506.08009) or several together, each one step behind the one before it (Rolling Forcing, arXiv
2509.25161). They differ in chunk, noise levels, solver, window and sink only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from .errors import SettingError, require
from .fields import require_types
from .kv.recent import Recent
from .kv.settings import KVSettings
from .kv.shot_sink import ShotSink
from .kv.sink_window import SinkWindow
from .plan.blockwise import Blockwise
from .plan.settings import PlanSettings
from .plan.shots import Shots
from .plan.staggered import Staggered, VideoWindow
from .schedule import Schedule, from_sigmas, shift_sigma

SMALL, MIDDLE, LARGE = (1536, 30), (3072, 30), (5120, 40)
FOUR_STEPS = (1000, 750, 500, 250)
SAME_LEVEL = 2e-3
"""Hosts take sigmas from a table of 1000 entries."""


@dataclass(frozen=True)
class Released:
    """How one checkpoint is sampled.

    title: what users choose. file: where the weights come from, project and file. size: width and number of blocks of
    the transformer. chunk_frames: latent frames. timesteps: noise levels in thousandths before the shift, without the
    final 0; shift None: they are the levels themselves. first_timesteps: those of the chunk that begins a video, where
    it has others. window_frames: latent frames whose K/V a chunk sees, itself and the sink included; 0 for all.
    sink_frames: of these, how many at the start of the video stay. recache: the kept history is computed again under a
    new prompt. solver: between steps. shot_offset: for models that know shots, latent frames between two of them; their
    newest shot has a sink of its own, as large as the video's. joint: as many chunks as there are steps are denoised
    together, one forward for all of them; then the window counts them all, and the sink stands right before what else
    is seen. What a clean pass sees are the window's newest frames, without a sink.
    """

    title: str
    file: str
    size: tuple[int, int] = SMALL
    chunk_frames: int = 3
    timesteps: tuple[float, ...] = FOUR_STEPS
    shift: float | None = 5.0
    first_timesteps: tuple[float, ...] = ()
    window_frames: int = 0
    sink_frames: int = 0
    recache: bool = False
    solver: str = "renoise"
    shot_offset: int = 0
    joint: bool = False

    def __post_init__(self) -> None:
        require_types(self)
        at_work = "the chunk itself" if self.active == 1 else f"the {self.active} chunks in work"
        room = f"0, or whole chunks: the sink's {self.sink_frames} frames, one chunk of history and {at_work}"
        whole = self.window_frames % self.chunk_frames == self.sink_frames % self.chunk_frames == 0
        fits = self.window_frames >= self.sink_frames + (1 + self.active) * self.chunk_frames
        require(not self.window_frames or (whole and fits), "window_frames", self.window_frames, room)
        require(self.window_frames > 0 or self.sink_frames == 0, "sink_frames", self.sink_frames, "0 without a window")

    @property
    def active(self) -> int:
        """Chunks that are in work at once."""
        return len(self.timesteps) if self.joint else 1

    @property
    def plan(self) -> PlanSettings:
        """The order of its chunks."""
        return Staggered(self.chunk_frames, ar_step=1) if self.joint else Blockwise(self.chunk_frames)

    @property
    def attention(self) -> str:
        """The engine's, of :data:`.engine.settings.ATTENTION`."""
        return "joint" if self.joint else "block-causal"

    @property
    def joint_frames(self) -> int:
        """Latent frames that a forward over several chunks sees; the engine's setting."""
        return self.window_frames if self.joint else 0

    @cached_property
    def schedule(self) -> Schedule:
        return self._schedule(self.timesteps)

    @cached_property
    def first_schedule(self) -> Schedule:
        """Of the chunk that begins a video."""
        return self._schedule(self.first_timesteps or self.timesteps)

    def _schedule(self, timesteps: tuple[float, ...]) -> Schedule:
        levels = [step / 1000 for step in timesteps]
        return from_sigmas([*(level if self.shift is None else shift_sigma(level, self.shift) for level in levels), 0])

    def shots(self, cuts: tuple[int, ...]) -> Shots:
        """How the model sees a video that is cut at these chunks."""
        return Shots(cuts, self.shot_offset) if self.shot_offset else Shots()

    def kv(self, cuts: tuple[int, ...] = ()) -> KVSettings:
        """What of the history is kept. cuts: chunks at which a new shot begins."""
        if not self.window_frames:
            return KVSettings()
        budget = self.window_frames / self.chunk_frames - 1  # the active chunk is kept beside it
        sink = self.sink_frames / self.chunk_frames
        if self.joint:  # a clean pass sees one chunk alone, so as much of the newest history, and no sink
            return KVSettings(budget + sink, SinkWindow(sink=sink, reposition=True))
        if self.shot_offset and cuts:
            return KVSettings(budget, ShotSink(sink=sink, shots=cuts))
        return KVSettings(budget, SinkWindow(sink=sink) if sink else Recent())

    def windows(self, frames: int, prefix_frames: int) -> tuple[VideoWindow, ...]:
        """The runs that make a video of ``frames`` latent frames, ``prefix_frames`` of them given.

        One, or two where the chunk that begins it takes other steps: the second has the first one's chunk as its
        prefix, whose K/V is that of a clean pass.
        """
        if not self.first_timesteps or prefix_frames >= self.chunk_frames or frames <= self.chunk_frames:
            return (VideoWindow(0, frames, prefix_frames),)
        return VideoWindow(0, self.chunk_frames, prefix_frames), VideoWindow(0, frames, self.chunk_frames)

    def schedule_of(self, part: VideoWindow) -> Schedule:
        """The noise levels of one of :meth:`windows`."""
        return self.first_schedule if part.prefix_frames < self.chunk_frames else self.schedule

    def check_size(self, dim: int, layers: int) -> None:
        """SettingError when a transformer of this width and depth is another model."""
        accepted = f"a model of width {self.size[0]} with {self.size[1]} blocks: {self.file}"
        require((dim, layers) == self.size, "released model", f"width {dim}, {layers} blocks", accepted)

    def check_levels(self, schedule: Schedule) -> None:
        """SettingError when ``schedule`` has other noise levels than the model was released with."""
        wanted, given = self.schedule.sigmas, schedule.sigmas
        same = len(wanted) == len(given)
        if not same or any(abs(a - b) > SAME_LEVEL for a, b in zip(wanted, given, strict=True)):
            accepted = f"those that {self.title} was released with: {', '.join(f'{one:.4g}' for one in wanted)}"
            raise SettingError("sigmas", ", ".join(f"{one:.4g}" for one in given), accepted)


# Sources: the projects' own inference configurations, read in November 2026.
ROWS = (
    Released("Self-Forcing 1.3B", "gdhe17/Self-Forcing: checkpoints/self_forcing_dmd.pt"),
    Released("Causal-Forcing 1.3B, chunks of 3", "zhuhz22/Causal-Forcing: chunkwise/causal_forcing.pt"),
    Released(
        "Causal-Forcing 1.3B, single frames", "zhuhz22/Causal-Forcing: framewise/causal_forcing.pt", chunk_frames=1
    ),
    Released(
        "Causal-Forcing++ 1.3B, 2 steps",
        "zhuhz22/Causal-Forcing: causal-forcing++/framewise-2step.pt",
        chunk_frames=1,
        timesteps=(1000, 500),
        first_timesteps=FOUR_STEPS,
    ),
    Released(
        "Causal-Forcing++ 1.3B, 1 step",
        "zhuhz22/Causal-Forcing: causal-forcing++/framewise-1step.pt",
        chunk_frames=1,
        timesteps=(1000,),
        first_timesteps=FOUR_STEPS,
    ),
    Released(
        "Causal-Forcing 1.3B, long video",
        "zhuhz22/Causal-Forcing: chunkwise/longvideo.pt",
        window_frames=21,
        sink_frames=3,
        joint=True,
    ),
    Released(
        "Rolling Forcing 1.3B",
        "TencentARC/RollingForcing: checkpoints/rolling_forcing_dmd.pt",
        timesteps=(1000, 800, 600, 400, 200),
        window_frames=21,
        sink_frames=3,
        joint=True,
    ),
    Released(
        "Self Gradient Forcing 1.3B, chunks of 3",
        "JunhaoZhuang/Self_Gradient_Forcing: chunkwise/ar/model.pt",
        window_frames=9,
        sink_frames=3,
    ),
    Released(
        "Self Gradient Forcing 1.3B, single frames",
        "JunhaoZhuang/Self_Gradient_Forcing: framewise/ar/model.pt",
        chunk_frames=1,
        window_frames=18,
        sink_frames=3,
    ),
    Released(
        "Reward-Forcing 1.3B", "JaydenLu666/Reward-Forcing-T2V-1.3B: rewardforcing.pt", window_frames=9, sink_frames=3
    ),
    Released(
        "LongLive 1.3B",
        "Efficient-Large-Model/LongLive-1.3B: models/longlive_base.pt, with lora.pt by a LoRA loader",
        window_frames=12,
        sink_frames=3,
        recache=True,
    ),
    Released(
        "LongLive 2.0 5B",
        "Efficient-Large-Model/LongLive-2.0-5B: model_bf16.pt, on Wan 2.2 TI2V 5B",
        MIDDLE,
        chunk_frames=8,
        timesteps=(999, 749.25, 499.5, 249.75),
        window_frames=32,
        sink_frames=8,
        solver="unipc",
        shot_offset=8,
    ),
    Released(
        "Krea Realtime 14B", "krea/krea-realtime-video: krea-realtime-video-14b.safetensors", LARGE, window_frames=6
    ),
    Released(
        "StreamDiffusionV2 1.3B, video to video",
        "jerryfeng/StreamDiffusionV2: wan_causal_dmd_v2v/model.pt",
        chunk_frames=1,
        timesteps=(700, 500),
        shift=None,
        window_frames=6,
        sink_frames=3,
    ),
)
RELEASED: dict[str, Released] = {row.title: row for row in ROWS}
