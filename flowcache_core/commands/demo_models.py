"""The bundled models as the demo runs them: the Wan ones and the mini MAGI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..bundled import BUNDLED, load_bundled
from ..cost import MagiShape, ModelShape, WanShape
from ..engine import EngineSettings
from ..errors import require
from ..mini import MiniModel
from ..mini_magi import MiniMagi, load_mini_magi, text_guidance
from ..models.magi.denoiser import MagiDenoiser
from ..models.wan.denoiser import WanDenoiser
from ..models.wan.guidance_refresh import GuidanceRefresh
from ..parallel.shape import Shareable
from ..plan import PLANS, Blockwise
from ..schedule import shifted

MAGI = "mini-magi"
MODELS = (*BUNDLED, MAGI)


class Subject(Protocol):
    """plans: that it can be run in, its own first. shift: of its noise levels, None where they follow another rule.
    presets: whether some come with it.
    """

    @property
    def presets(self) -> bool: ...

    @property
    def plans(self) -> Sequence[str]: ...

    @property
    def shift(self) -> float | None: ...

    def settings(self, plan: str, chunks: int, steps: int) -> EngineSettings:
        """Every step computed, all history kept."""
        ...

    def denoiser(self, prompts: Sequence[Tensor], guidance: float, every: int) -> WanDenoiser | MagiDenoiser:
        """prompts: with the text and without."""
        ...

    def shape(self, prompt: Tensor) -> ModelShape:
        """What its FLOPs are counted with."""
        ...

    def shareable(self, branches: int) -> Shareable: ...


@dataclass(frozen=True)
class WanSubject:
    mini: MiniModel
    presets: bool = True

    @property
    def plans(self) -> Sequence[str]:
        """Those that are registered now."""
        return tuple(dict.fromkeys((Blockwise.name, *PLANS)))

    @property
    def shift(self) -> float:
        return self.mini.shift

    def settings(self, plan: str, chunks: int, steps: int) -> EngineSettings:
        """Finished chunks are encoded again: it is trained on clean history."""
        frames = self.mini.chunk_frames
        made = PLANS[plan].abreast(frames, steps).plan(chunks * frames, steps)
        return EngineSettings(made, shifted(steps, self.mini.shift), clean_pass=True)

    def denoiser(self, prompts: Sequence[Tensor], guidance: float, every: int) -> WanDenoiser:
        if every == 1:
            return WanDenoiser(self.mini.transformer, {0: prompts}, guidance)
        return GuidanceRefresh(self.mini.transformer, {0: prompts}, guidance, every=every)

    def shape(self, prompt: Tensor) -> ModelShape:
        return WanShape.of(self.mini.transformer.config, prompt.shape[1])

    def shareable(self, branches: int) -> Shareable:
        heads = self.mini.transformer.config.num_heads
        return Shareable(branches, heads, heads)


@dataclass(frozen=True)
class MagiSubject:
    mini: MiniMagi
    presets: bool = False
    plans: Sequence[str] = ("window",)
    shift: None = None

    def settings(self, plan: str, chunks: int, steps: int) -> EngineSettings:
        return self.mini.settings(chunks, steps)

    def denoiser(self, prompts: Sequence[Tensor], guidance: float, every: int) -> MagiDenoiser:
        require(every == 1, "guidance-every", every, f"1 with {MAGI}, whose guidance is its own")
        text = prompts[0]
        captions = {0: (text, text.new_ones(text.shape[:2]))}
        return MagiDenoiser(self.mini.transformer, captions, text_guidance(guidance))

    def shape(self, prompt: Tensor) -> ModelShape:
        return MagiShape.of(self.mini.transformer.config, text_tokens=prompt.shape[1])

    def shareable(self, branches: int) -> Shareable:
        config = self.mini.transformer.config
        return Shareable(branches, config.num_heads, config.kv_heads)


def load_model(name: str) -> MiniModel | MiniMagi:
    """One of :data:`MODELS`. SettingError for a name that there is not, ValueError for a damaged file."""
    require(name in MODELS, "model", name, ", ".join(MODELS))
    return load_mini_magi() if name == MAGI else load_bundled(name)


def subject_of(mini: MiniModel | MiniMagi) -> Subject:
    return MagiSubject(mini) if isinstance(mini, MiniMagi) else WanSubject(mini)
