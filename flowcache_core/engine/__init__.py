"""The engine: one loop over the ticks of a plan. `generate` runs a window; `EngineSettings` shapes it."""

from .run import ATTENTION as ATTENTION
from .run import EngineSettings as EngineSettings
from .run import generate as generate
from .run import seeded_noise as seeded_noise
