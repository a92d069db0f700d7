"""The ranks of this run as a mesh of branches times heads, joined and left by every rank."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from ..errors import Found, require, require_finite
from .errors import answered
from .rank import say_joined, say_left
from .shape import MOST_RANKS, MeshShape
from .traffic import Traffic

TIMEOUT = 300.0  # seconds that a rank waits for another
LONGEST_WAIT = 86_400.0


@dataclass(frozen=True)
class Mesh:
    """This rank's place. cfg, heads: the groups that share its heads, and its branches; None for a group of one.

    device: where its tensors are. What the host decides on (settings, decisions) goes over the CPU (gloo) always.
    """

    shape: MeshShape = MeshShape()
    rank: int = 0
    device: torch.device = torch.device("cpu")
    timeout: float = TIMEOUT
    cfg: dist.ProcessGroup | None = None
    heads: dist.ProcessGroup | None = None
    traffic: Traffic = field(default_factory=Traffic)

    @property
    def cfg_rank(self) -> int:
        return self.rank // self.shape.heads

    @property
    def heads_rank(self) -> int:
        return self.rank % self.shape.heads


def started_as_rank() -> bool:
    """Whether torchrun, or :mod:`.launch`, has started this process as one of several. Platforms set the same variables
    for a job of one process."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def rank_in_world() -> tuple[int, int]:
    """This process's rank and how many there are, as its starter says. SettingError for what is no such word."""
    if not started_as_rank():
        return 0, 1
    world = whole_of("WORLD_SIZE", 1, MOST_RANKS, "from 1")
    return whole_of("RANK", 0, world - 1, "below WORLD_SIZE"), world


def require_meeting_place() -> None:
    """SettingError unless the variables say where rank 0 is to be met."""
    require("MASTER_ADDR" in os.environ, "MASTER_ADDR", Found("nothing"), "where rank 0 is, as torchrun says it")
    whole_of("MASTER_PORT", 0, 65535, "to 65535")


def whole_of(variable: str, least: int, most: int, said: str) -> int:
    text = os.environ.get(variable)
    whole = text is not None and text.isascii() and text.isdigit() and least <= int(text[:9]) <= most
    require(whole, variable, Found("nothing") if text is None else text, f"a whole number {said}, as torchrun sets it")
    return int(text or 0)


def backend_for(device: torch.device) -> str:
    """gloo for the CPU, and beside it what the device needs. SettingError when this torch does not have it."""
    if device.type == "cpu":
        found, name = dist.is_available() and dist.is_gloo_available(), "gloo"
    elif device.type == "cuda":
        found, name = dist.is_available() and dist.is_nccl_available() and dist.is_gloo_available(), "nccl"
    else:
        found, name = False, f"a backend for {device.type}"
    accepted = f"cpu with gloo, or cuda with nccl and gloo; this torch ({torch.__version__}) has no {name}"
    require(found, "device of the ranks", str(device), accepted)
    return "cpu:gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"


@contextmanager
def joined(shape: MeshShape, device: torch.device | str = "cpu", timeout: float = TIMEOUT) -> Iterator[Mesh]:
    """Join the ranks that were started together; leave them at the end, whatever happens.

    device: "cuda" is the card of this rank's number on its machine. SettingError when the number of ranks is not the
    shape's or a backend is missing, :class:`.errors.RankLost` when the others do not come within ``timeout`` seconds.
    """
    require_finite("rank timeout", timeout, minimum=0.1, maximum=LONGEST_WAIT)
    rank, world = rank_in_world()
    require(world == shape.size, "ranks", Found(f"{world} started"), f"{shape.size}, for a mesh of {shape}")
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    backend = backend_for(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world == 1:
        yield Mesh(shape, 0, device, timeout)
        return
    require_meeting_place()
    try:
        with answered(timeout):
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
        mesh = arranged(shape, rank, device, timeout)
        say_joined()
        yield mesh
    finally:
        say_left()
        if dist.is_initialized():
            dist.destroy_process_group()


def arranged(shape: MeshShape, rank: int, device: torch.device, timeout: float) -> Mesh:
    """The ranks that have joined, as a mesh of ``shape``."""
    wait = timedelta(seconds=timeout)
    with answered(timeout):
        mesh = init_device_mesh(device.type, (shape.cfg, shape.heads), mesh_dim_names=("cfg", "heads"))
        groups = {name: mesh.get_group(name) for name in ("cfg", "heads")}
        for group in groups.values():
            for kind in {device.type, "cpu"}:
                group._get_backend(torch.device(kind))._set_default_timeout(wait)
    cfg = groups["cfg"] if shape.cfg > 1 else None
    heads = groups["heads"] if shape.heads > 1 else None
    return Mesh(shape, rank, device, timeout, cfg, heads)
