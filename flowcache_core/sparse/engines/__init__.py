"""Engines by name: one engine, one file, one line here."""

from __future__ import annotations

from .base import Call, Engine, EngineError
from .flex import Flex
from .gather import Gather
from .sparge import Sparge

ENGINES: dict[str, Engine] = {engine.name: engine for engine in (Gather(), Flex(), Sparge())}

__all__ = ["ENGINES", "Call", "Engine", "EngineError"]
