"""The host's server, where the pack runs in one."""

from __future__ import annotations

import sys
from typing import Any


def host_server() -> Any | None:
    """None where there is none, as in a script."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
