"""The node that runs now, and what is shown on it while it runs.

What a node makes outlives it: the host keeps it and hands it to other graphs, where the node's number is another's.
So the number is asked for when something is shown, and never kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context

from ..host_server import host_server
from .recent_runs import RECENT

RUN_EVENT, ESTIMATE_EVENT = "flowcache.run", "flowcache.estimate"


@dataclass(frozen=True)
class RunningNode:
    """A node of the prompt that runs now. ``display``: the one a user sees in its place, where another node made it."""

    prompt: str
    node: str
    display: str

    @classmethod
    def now(cls) -> RunningNode | None:
        """None outside a prompt."""
        context = get_executing_context()
        if context is None:
            return None
        display = get_progress_state().dynprompt.get_display_node_id(context.node_id)
        return cls(context.prompt_id, context.node_id, display)

    @property
    def kind(self) -> str | None:
        """The class of the node that a user sees."""
        prompt = get_progress_state().dynprompt
        return prompt.get_node(self.display)["class_type"] if prompt.has_node(self.display) else None


def show_run(message: dict[str, Any] | None) -> None:
    """Tell the browser how far the run on the node that runs now is; None: it broke off, and nothing is to be shown."""

    def send(server: Any, here: RunningNode) -> None:
        place = {"prompt": here.prompt, "node": here.display, "kind": here.kind, "workflow": workflow_of(server, here)}
        told = {**place, **(message or {"gone": True})}
        (RECENT.keep if message else RECENT.forget)(server.client_id, told)
        server.send_sync(RUN_EVENT, told, server.client_id)

    _show(send)


def workflow_of(server: Any, here: RunningNode) -> str | None:
    """The id of the graph that the prompt was made of; None for prompts that no frontend made."""
    for _, number, _, extra, *_ in server.prompt_queue.get_current_queue_volatile()[0]:
        if number == here.prompt:
            return (extra.get("extra_pnginfo") or {}).get("workflow", {}).get("id")
    return None


def show_text(text: str) -> None:
    """Write ``text`` on the node that runs now."""
    _show(lambda server, here: server.send_progress_text(text, here.display, server.client_id))


def show_estimates(nodes: Mapping[str, Any]) -> None:
    """Tell the browser what nodes of the prompt that runs now will cost: node -> list of numbers."""

    def send(server: Any, here: RunningNode) -> None:
        message = {"workflow": workflow_of(server, here), "nodes": nodes}
        server.send_sync(ESTIMATE_EVENT, message, server.client_id)

    _show(send)


def listening() -> bool:
    """Whether a browser asked for the prompt that runs now."""
    return getattr(host_server(), "client_id", None) is not None


def show_video(filename: str) -> None:
    """Show a file of the temp folder on the node that runs now, as the host does when a node is done."""
    output = {"images": [{"filename": filename, "subfolder": "", "type": "temp"}], "animated": (True,)}

    def send(server: Any, here: RunningNode) -> None:
        message = {"node": here.node, "display_node": here.display, "output": output, "prompt_id": here.prompt}
        server.send_sync("executed", message, server.client_id)

    _show(send)


def _show(send: Callable[[Any, RunningNode], None]) -> None:
    """Nothing where no browser asked for the prompt. That something cannot be shown ends no run."""
    try:
        here = RunningNode.now()
        if here is not None and listening():
            send(host_server(), here)
    except Exception as error:
        logging.warning("FlowCache: could not show the run on its node: %r", error)
