"""Which conditioning entries a guider runs, and which K/V branch of the cache each of them owns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....flowcache_core.errors import SettingError
from ..run.foreign import FUNCTIONS
from ..run.prompt_schedule import Entry, prompts_of, starts


def names_that_run(guider: Any, x: Tensor, sigmas: Sequence[float], model_options: Mapping[str, Any]) -> frozenset[str]:
    """The guider's conditionings ("positive", "negative", ...) that it evaluates at any of these noise levels.

    Asked of the guider itself, with zeros in place of the model, because only it knows (CFG 1 runs no negative).
    """
    seen: set[Any] = set()

    def answer(executor: Any, model: Any, conds: list[Any], x_in: Tensor, timestep: Any, options: Any) -> list[Tensor]:
        seen.update(entry["uuid"] for entries in conds if entries is not None for entry in entries)
        return [torch.zeros_like(x_in) for _ in conds]

    options = {key: value for key, value in model_options.items() if key not in FUNCTIONS}
    wrappers = {WrappersMP.CALC_COND_BATCH: {"flowcache": [answer]}}
    options["transformer_options"] = {**model_options.get("transformer_options", {}), "wrappers": wrappers}
    for sigma in sigmas:
        guider.predict_noise(x, x.new_full((x.shape[0],), sigma), options, 0)
    return frozenset(name for name, entries in guider.conds.items() if any(entry["uuid"] in seen for entry in entries))


@dataclass(frozen=True)
class Branches:
    """Branches of a run. Entries of one conditioning that hold at different noise levels or for different chunks take
    turns on the same branch, so that each finds the history the other has written.

    conds: the guider's processed conditionings; names: those that it runs; sigmas: the schedule's and the clean pass'.
    """

    conds: Mapping[str, Sequence[Entry]]
    names: frozenset[str]
    sigmas: tuple[float, ...]
    model_sampling: Any

    def __post_init__(self) -> None:
        for name in self.names:
            for entry in self.conds[name]:
                for key, what in (("area", "an area"), ("control", "a ControlNet"), ("gligen", "GLIGEN")):
                    if entry.get(key) is not None:
                        accepted = (
                            "conditioning without areas, ControlNet and GLIGEN: a chunk sees part of the video only"
                        )
                        raise SettingError(name, f"conditioning with {what}", accepted)

    def for_chunk(self, chunk: int) -> dict[str, list[Entry]]:
        """What the guider is given while it computes this chunk."""
        return {name: prompts_of(entries, chunk, self.model_sampling) for name, entries in self.conds.items()}

    @cached_property
    def widths(self) -> dict[str, int]:
        """Branches per conditioning: the most entries of it that are evaluated together."""
        most = dict.fromkeys((name for name in self.conds if name in self.names), 0)
        for chunk in starts(self.conds):
            conds = self.for_chunk(chunk)
            for name in most:
                most[name] = max(most[name], *(len(evaluated(conds[name], sigma)) for sigma in self.sigmas))
        return {name: width for name, width in most.items() if width}

    @property
    def count(self) -> int:
        return sum(self.widths.values())

    def table(self, conds: Mapping[str, Sequence[Entry]], sigma: float) -> dict[Any, int]:
        """uuid -> branch of the entries evaluated at ``sigma``.

        Numbered from the last to the first, because the host stacks them so in a batch: a batch is then one slice.
        """
        return {
            entry["uuid"]: places[-1 - place]
            for name, places in self.places.items()
            for place, entry in enumerate(evaluated(conds[name], sigma))
        }

    @cached_property
    def places(self) -> dict[str, range]:
        """The branches of each conditioning."""
        end, result = self.count, {}
        for name, width in self.widths.items():
            result[name] = range(end - width, end)
            end -= width
        return result

    def name(self, branch: int) -> str:
        """The conditioning that a branch belongs to."""
        return next(name for name, places in self.places.items() if branch in places)

    def nearest(self, branch: int, among: set[int]) -> int:
        """One of ``among``, of the same conditioning if there is one."""
        home = self.places[self.name(branch)]
        return min(among, key=lambda other: (other not in home, other))


def evaluated(entries: Sequence[Entry], sigma: float) -> list[Entry]:
    """The entries whose range of noise levels ``sigma`` is in, both ends included, in the host's float32."""
    level = torch.tensor(sigma, dtype=torch.float32)
    return [
        entry
        for entry in entries
        if not ("timestep_start" in entry and level > entry["timestep_start"])
        and not ("timestep_end" in entry and level < entry["timestep_end"])
    ]
