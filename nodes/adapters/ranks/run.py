"""A sampling whose windows run on ranks: this process starts them, shows what they tell, and ends them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.model_management
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from torch import Tensor

from ....flowcache_core.calibrate.record import Record
from ....flowcache_core.engine import EngineSettings
from ....flowcache_core.errors import require
from ....flowcache_core.parallel.asked import Begin, MagiRun, ModelFile, Told, WanRun, Window
from ....flowcache_core.parallel.errors import RankError
from ....flowcache_core.parallel.fits import require_policy, require_sparse
from ....flowcache_core.parallel.session import Session
from ....flowcache_core.parallel.shape import MeshShape
from ....flowcache_core.report.events import StepTaken
from ..naming import naming
from ..run.foreign import compiles
from ..run.sparse import NAME as SPARSE
from ..shown.progress import Progress
from ..shown.said import said
from .choice import NAME, Devices, RanksChoice, spoken

KEY = "flowcache_ranks"


def stay_unloaded(guider: Any) -> None:
    """Before the host prepares sampling: it is not to load the model, which ranks load where they need it.

    ``guider.model_options`` are the run's own copy.
    """

    def prepare(executor: Any, model: Any, noise_shape: Any, conds: Any, *args: Any, **kwargs: Any) -> Any:
        return model.model, conds, []

    options = guider.model_options
    add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, prepare, options, is_model_options=True)


def check_engines(engines: Sequence[EngineSettings], levels: Sequence[float], shape: MeshShape) -> None:
    """SettingError for what ranks do not do, in the name of the node that asks for it."""
    for engine in engines:
        with naming("FlowCache Chunkwise Reuse"):
            require_policy(engine.policy, shape)
        with naming(SPARSE):
            require_sparse(engine.sparse, shape)
    with naming(NAME):
        ends = "a schedule that ends at 0"
        require(levels[-1] == 0, "sigmas", f"a schedule that ends at {levels[-1]:g}", ends)
        recording = any(isinstance(engine.policy, Record) for engine in engines)
        require(not recording, "preset", "record", "another: a recording is made on one device, without this node")


def note_of(shape: MeshShape, devices: Devices) -> str:
    where = "CPU ranks" if devices.kind == "cpu" else "ranks, a GPU each"
    return f"on {shape.size} {where} ({spoken(shape)}); seconds and K/V are those of one of them"


def not_compiled(options: Mapping[str, Any]) -> tuple[str, ...]:
    return ("torch.compile has no effect on ranks",) if compiles(options) else ()


@contextmanager
def ranks(file: ModelFile, shape: MeshShape, choice: RanksChoice, devices: Devices) -> Iterator[Session]:
    """The model on its ranks; none is left at the end. RuntimeError naming the rank that failed, died or hung."""
    if devices.kind != "cpu":  # the cards have to hold the model once each, and the first holds what the host has there
        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache(True)
    begin = Begin(file, shape, devices.kind, choice.timeout)
    interrupted = comfy.model_management.throw_exception_if_processing_interrupted
    try:
        with Session(begin, interrupted) as session:
            yield session
    except RankError as error:
        raise RuntimeError(said(f"{NAME}: {error}")) from None


def run_window(
    session: Session,
    run: WanRun | MagiRun,
    engine: EngineSettings,
    x: Tensor,
    prefix: Tensor | None,
    seed: int,
    clean: Tensor,
    progress: Progress,
) -> Tensor:
    """A window's latents, where ``x`` is. clean: the window's newest clean prediction, written as steps come."""

    def told(one: Told) -> None:
        event = one.event
        if isinstance(event, StepTaken) and one.clean is not None:
            chunk = engine.plan.chunks[event.chunk]
            clean[:, :, chunk.first_frame : chunk.end_frame] = one.clean.to(clean)
        progress(event)

    return session.run(Window(run, engine, x, seed, prefix), told).to(x)
