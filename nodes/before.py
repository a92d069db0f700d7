"""What a run will cost, before it: a route that the frontend asks."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from ..flowcache_core.calibrate.measured_heads import MeasureHeads
from ..flowcache_core.kv.settings import KVSettings
from ..flowcache_core.presets.own import OwnHeads, OwnPreset, OwnRow
from ..flowcache_core.sparse.settings import SparseSettings
from . import kv, presets, reuse, sparse
from .adapters.before.graph import Graph, NotKnownError
from .adapters.before.tell import Numbers, before
from .adapters.before.wired import Readers
from .adapters.host_server import host_server
from .adapters.run.settings import AutoReuse, ReuseSettings

PRESET = "FlowCachePreset"
ROUTE = "/flowcache/estimate"
MOST_BYTES, MOST_NODES = 8_000_000, 5000


def read_reuse(graph: Graph, node: str) -> ReuseSettings | AutoReuse:
    linked, fields = graph.source(node, "own_preset"), graph.fields(node, "preset")
    if linked is None:
        return reuse.chosen(fields, None)
    row = linked_row(graph, linked, "which steps the linked preset computes")
    if not isinstance(row, OwnPreset):  # measured heads, which the run will refuse
        raise NotKnownError("which steps the linked preset computes")
    return reuse.chosen(fields, row)


def linked_row(graph: Graph, linked: str, what: str) -> OwnRow:
    """The preset that a node hands out; NotKnownError for ``what`` where it is made by the graph."""
    if graph.kind(linked) != PRESET or graph.source(linked, "preset") is not None:
        raise NotKnownError(what)
    hold, file, lists = (graph.value(linked, name) for name in ("hold", "file", "lists"))
    return presets.found(None, hold, file, lists)[0]


def read_kv(graph: Graph, node: str) -> KVSettings:
    method = graph.fields(node, "method")
    stored = graph.fields(node, "storage") if graph.value(node, "storage") is not None else None
    dtype, device = graph.value(node, "dtype"), graph.value(node, "device")
    preset = graph.fields(node, "preset") if graph.value(node, "preset") is not None else None
    return kv.settings(graph.value(node, "budget"), method, dtype, device, stored, preset)


def read_sparse(graph: Graph, node: str) -> SparseSettings | MeasureHeads:
    preset, linked = graph.fields(node, "preset"), graph.source(node, "own_preset")
    names = [name for name in graph.nodes[node]["inputs"] if "." not in name]
    fields = {name: graph.value(node, name) for name in names if name not in ("model", "preset", "own_preset")}
    if linked is not None:
        row = linked_row(graph, linked, "which heads are sparse")
        if not isinstance(row, OwnHeads):
            raise NotKnownError("which heads are sparse")
        return sparse.settings(row.preset.method, fields)
    if preset["preset"] == sparse.MEASURE:
        return sparse.measure_of(preset, fields)
    return sparse.settings(sparse.method_of(preset, sparse.heads_of(preset)), fields)


READERS = Readers(read_reuse, read_kv, read_sparse)


def estimates_of(prompt: Any) -> dict[str, list[Numbers]]:
    """Node -> what samplings through it will cost, for a prompt as the frontend would queue it."""
    return before(Graph.of(prompt), READERS)


def register() -> None:
    """Give the host's server the route; nothing where there is no server, as in a script."""
    server = host_server()
    if server is None:
        return
    from aiohttp import web

    @server.routes.post(ROUTE)
    async def estimate(request: web.Request) -> web.Response:
        """``{"prompt": ...}`` to ``{"nodes": {node: [numbers]}}``; computed beside the server's loop."""
        if (request.content_length or 0) > MOST_BYTES:
            return web.json_response({"error": f"at most {MOST_BYTES} bytes"}, status=413)
        try:
            prompt = (await request.json())["prompt"]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
            return web.json_response({"error": 'JSON of the form {"prompt": ...}'}, status=400)
        if not isinstance(prompt, dict) or len(prompt) > MOST_NODES:
            return web.json_response({"error": f"a prompt of at most {MOST_NODES} nodes"}, status=400)
        nodes = await asyncio.get_running_loop().run_in_executor(None, estimates_of, prompt)
        return web.json_response({"nodes": nodes})
