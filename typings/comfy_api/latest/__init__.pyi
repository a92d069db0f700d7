"""The few names of the host that the nodes use, as they use them (tests/host/test_typings.py compares)."""

from . import io as io
from . import ui as ui

class ComfyExtension:
    async def get_node_list(self) -> list[type[io.ComfyNode]]: ...
