"""K/V settings that are megabytes: the rest follows from the model and the plan, once these are known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from ..errors import require, require_finite
from ..plan.base import Plan
from .allocate import Allocation, allocate
from .profile import parse_profile, profile_for
from .settings import KVSettings
from .spec import KVSpec


@dataclass(frozen=True)
class AutoKV(KVSettings):
    """``megabytes``: 10^6 bytes that a run's K/V may take, of all branches, layers and ranks, what packed layers are
    read into included. Budget, compressor and storage are chosen (:mod:`.allocate`); those of this object say nothing.
    ``profiles``: texts of files that ``measure-kv`` wrote; one of the model's sizes goes before those that are shipped.
    ``heads``: whether heads of a layer may get shares of their own, where they were measured.
    """

    megabytes: float = 0.0
    profiles: tuple[str, ...] = ()
    heads: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_finite("megabytes", self.megabytes, minimum=0.0)
        require(self.megabytes > 0, "megabytes", self.megabytes, "a number above 0")
        for text in self.profiles:
            parse_profile(text)

    @property
    def bounded(self) -> bool:
        return True

    def by_layer(self, user: str) -> AutoKV:
        """With one share for all heads of a layer."""
        return replace(self, heads=False)

    def settled(self, spec: KVSpec, plan: Plan) -> KVSettings:
        return _allocated(self, countable(spec), plan).settings

    def choice(self, spec: KVSpec, plan: Plan) -> str:
        profile, own = profile_for(spec, self.profiles)
        found = _allocated(self, countable(spec), plan)
        return found.text(self.megabytes, profile, own)

    def note(self, plan: Plan) -> None:
        """What is chosen is said when it is known."""


def countable(spec: KVSpec) -> KVSpec:
    """What is counted with. Of the whole run: ranks must choose alike, and as one rank would."""
    return replace(spec.whole, device="meta", move=None)


@lru_cache(maxsize=64)
def _allocated(auto: AutoKV, spec: KVSpec, plan: Plan) -> Allocation:
    profile, own = profile_for(spec, auto.profiles)
    base = KVSettings(dtype=auto.dtype, device=auto.device)
    return allocate(spec, plan, auto.megabytes, profile, own, base, auto.heads)
