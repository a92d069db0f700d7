"""The engine: one loop over the ticks of a plan. `generate` runs a window; `EngineSettings` shapes it."""

from .run import generate as generate
from .settings import ATTENTION as ATTENTION
from .settings import EngineSettings as EngineSettings
