"""Which nodes of a graph one sampling goes through."""

from __future__ import annotations

from dataclasses import dataclass

from comfy_execution.progress import get_progress_state

from .graph import Graph
from .model_sizes import LOADERS, MINI

SAMPLINGS = ("SamplerCustomAdvanced", "SamplerCustom")
REUSE, COMPRESSOR, SPARSE, SAMPLER, HOST_SAMPLER, REPORT = (
    "FlowCacheChunkwiseReuse", "FlowCacheKVCompressor", "FlowCacheSparseAttention", "FlowCacheARSampler",
    "SamplerARVideo", "FlowCacheReport",
)  # fmt: skip


@dataclass(frozen=True)
class Wired:
    """Node ids of one sampling, None for what it has not got. reports: FlowCache Report nodes on its latents."""

    sampling: str
    sampler: str
    reuse: str | None
    kv: str | None
    sparse: str | None
    loader: str | None
    host: bool
    reports: tuple[str, ...] = ()

    @classmethod
    def of(cls, graph: Graph, sampling: str) -> Wired | None:
        """None for a sampling that no AR sampler does."""
        sampler = graph.source(sampling, "sampler")
        if sampler is None or graph.kind(sampler) not in (SAMPLER, HOST_SAMPLER):
            return None
        guider = graph.source(sampling, "guider") or sampling
        chain = [*graph.upstream(guider, "model")]

        def first(*kinds: str) -> str | None:
            return next((node for node in chain if graph.kind(node) in kinds), None)

        last = chain[-1] if chain else None
        loader = first(*LOADERS, MINI) or last
        reports = tuple(node for node in graph.of_kind(REPORT) if graph.source(node, "latent") == sampling)
        host = graph.kind(sampler) == HOST_SAMPLER
        return cls(sampling, sampler, first(REUSE), first(COMPRESSOR), first(SPARSE), loader, host, reports)

    @classmethod
    def running(cls, sampling: str) -> Wired | None:
        """The sampling that a node of the prompt that runs now does."""
        graph = Graph.of(get_progress_state().dynprompt.get_original_prompt())
        return cls.of(graph, sampling) if sampling in graph.nodes else None

    @property
    def nodes(self) -> list[str]:
        """Those that say what the sampling will cost, and what it did."""
        return [node for node in (self.sampler, self.reuse, self.kv, *self.reports) if node is not None]
