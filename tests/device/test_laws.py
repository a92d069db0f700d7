"""Everything the engine can do, on a device: the same values as on the CPU, and nothing asked of the device in vain."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import tiny
import torch
from justified import check_copies, check_syncs
from tiny import STEPS

from flowcache_core.dry_run.traffic import Count
from flowcache_core.engine.anchor import LowFrequencies
from flowcache_core.kv import COMPRESSORS
from flowcache_core.kv.importance_redundancy import ImportanceRedundancy
from flowcache_core.kv.recent import Recent
from flowcache_core.kv.settings import STORAGE_DTYPES, KVSettings
from flowcache_core.kv.shot_sink import ShotSink
from flowcache_core.kv.sink_window import SinkWindow
from flowcache_core.kv.storage import STORAGES
from flowcache_core.reuse import POLICIES, QUANTITIES
from flowcache_core.reuse.chunkwise import Chunkwise
from flowcache_core.reuse.distance import LatentDistance, PatchDistance, TimeDistance
from flowcache_core.reuse.easycache import EasyCache
from flowcache_core.reuse.forecast import Forecast
from flowcache_core.reuse.front_loaded import FrontLoaded
from flowcache_core.reuse.interval import Interval
from flowcache_core.reuse.magcache import MagCache
from flowcache_core.reuse.motion import Motion
from flowcache_core.reuse.motion_reference import ReferenceMotion
from flowcache_core.reuse.never import Never
from flowcache_core.reuse.partial_schedule import PartialSchedule
from flowcache_core.reuse.published import Published
from flowcache_core.reuse.quantity import Residual
from flowcache_core.reuse.schedule import StaticSchedule
from flowcache_core.reuse.teacache import TeaCache
from flowcache_core.solvers import SOLVERS
from flowcache_core.solvers.renoise import ReNoise
from flowcache_core.solvers.unipc import UniPC

DEVICE = "pretend"
THRESHOLD = 0.1  # of tokens: some of a chunk need more, some do not
FIXED = StaticSchedule(warmup_steps=1, computed=(0, 3))


@dataclass(frozen=True)
class Case:
    """One run. model: of :mod:`tiny`, with its arguments. settings: of the engine."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    magi: bool = False
    reuses: bool = True
    looks: bool = False

    @property
    def compresses(self) -> bool:
        kv, make = self.settings.get("kv"), tiny.magi_settings if self.magi else tiny.settings
        return kv is not None and kv.note(make(**self.settings).plan) is None

    @property
    def kept_on_host(self) -> bool:
        """Whether K/V or computed steps were asked to be kept there: every step then waits for copies."""
        kv = self.settings.get("kv")
        return self.settings.get("reuse_device") == "cpu" or (kv is not None and kv.device == "cpu")

    @property
    def prompts(self) -> int:
        """Prompts and captions of the run, the null caption among them."""
        return tiny.CHUNKS + 1 if self.magi else len(self.model.get("switches", (0,)))

    def run(self, device: str, count: Count | None = None) -> tiny.Watched:
        denoiser = tiny.magi_denoiser(device, **self.model) if self.magi else tiny.wan(device, **self.model)
        engine = tiny.magi_settings(**self.settings) if self.magi else tiny.settings(**self.settings)
        return tiny.watched(denoiser, engine, device, count)


# One row per policy; ``looks``: whether it must see the video, which costs the one sync a tick.
LOOKING = [
    ("latent", Chunkwise(warmup_steps=1, threshold=9.0, distance=LatentDistance())),
    ("patch", Chunkwise(warmup_steps=1, threshold=9.0, distance=PatchDistance())),
    ("teacache-latent", TeaCache(warmup_steps=1, threshold=9.0, distance=LatentDistance())),
    ("easycache", EasyCache(warmup_steps=2, threshold=9.0)),
]
TOKENS = {"warmup_steps": 1, "uniform_updates": 1, "minimum": 0.1, "floor": 0.0, "distance": LatentDistance()}
TOKENWISE = [
    ("threshold", Motion(**TOKENS, threshold=THRESHOLD), True),
    ("every-token-alone", Motion(**TOKENS, threshold=THRESHOLD, vote=None), True),
    ("cap", Motion(**TOKENS, threshold=THRESHOLD, max_reuses=1), True),
    ("fixed-share", Motion(**TOKENS, share=0.5), False),
    ("listed", PartialSchedule(warmup_steps=1, computed=(0, 2, 4), partial=(1, 3), share=0.5), False),
]
FIXED_LISTS = [
    ("time", Chunkwise(warmup_steps=1, threshold=9.0, distance=TimeDistance())),
    ("teacache", TeaCache(warmup_steps=1, threshold=9.0)),
    ("magcache", MagCache(warmup_steps=1, curve=(0.99,) * STEPS)),
    ("interval", Interval(warmup_steps=1)),
    ("schedule", FIXED),
    ("schedule-together", StaticSchedule(warmup_steps=1, computed=(0, 2, 4), first=(0, 1, 2, 4), together=True)),
    ("front-loaded", FrontLoaded(first_share=0.7, share=0.4)),
    ("published", Published()),
    ("never", Never()),
]
BUDGET = KVSettings(budget=1.0, compressor=Recent())


def cases() -> list[Case]:
    found = [Case(f"policy-{name}", {"policy": policy}, looks=True) for name, policy in LOOKING]
    found += [Case(f"policy-{name}", {"policy": p}, reuses=name != "never") for name, p in FIXED_LISTS]
    for name, policy, looks in TOKENWISE:
        for place in (None, "cpu"):
            kv = KVSettings(budget=1.0, compressor=Recent(), device=place)
            values = {"policy": policy, "plan": "blockwise", "kv": kv}
            found.append(Case(f"tokens-{name}-kv-{place or 'device'}", values, looks=looks))
        found.append(Case(f"tokens-{name}-magi", {"policy": policy, "kv": BUDGET}, magi=True, looks=looks))
    reference = ReferenceMotion(**TOKENS, threshold=THRESHOLD)
    values = {"policy": reference, "quantity": Residual(), "plan": "blockwise"}
    found.append(Case("tokens-by-branch", values, looks=True))
    for name, quantity in QUANTITIES.items():
        found.append(Case(f"quantity-{name}", {"policy": FIXED, "quantity": quantity()}))
        off = {"policy": FIXED, "quantity": quantity(), "reuse_device": "cpu"}
        found.append(Case(f"quantity-{name}-kept-on-cpu", off))
    for name, compressor in COMPRESSORS.items():
        for granularity in ("token", "frame", "chunk"):
            kv = KVSettings(budget=2.0, compressor=compressor(key_granularity=granularity))
            found.append(Case(f"compressor-{name}-{granularity}", {"plan": "blockwise", "kv": kv, "policy": FIXED}))
    for granularity in ("frame", "chunk"):
        kv = KVSettings(budget=1.5, compressor=ImportanceRedundancy(query_granularity=granularity))
        found.append(Case(f"queries-{granularity}", {"plan": "blockwise", "kv": kv, "policy": FIXED}))
    for dtype in (None, *STORAGE_DTYPES):
        for place in (None, "cpu"):
            kv = KVSettings(budget=1.5, compressor=ImportanceRedundancy(), dtype=dtype, device=place)
            name = f"kv-{str(dtype).removeprefix('torch.')}-{place or 'device'}"
            found.append(Case(name, {"plan": "blockwise", "kv": kv, "policy": FIXED}))
    for stored, kind in STORAGES.items():
        for place in (None, "cpu"):
            kv = KVSettings(budget=1.5, compressor=ImportanceRedundancy(), device=place, storage=kind())
            found.append(
                Case(f"storage-{stored}-{place or 'device'}", {"plan": "blockwise", "kv": kv, "policy": FIXED})
            )
    found += [Case(f"plan-{plan}", {"plan": plan, "policy": FIXED}) for plan in tiny.PLAN_FIELDS]
    found += [Case(f"solver-{name}", {"solver": solver(), "policy": FIXED}) for name, solver in SOLVERS.items()]
    forecast = {"policy": FIXED, "quantity": Forecast(correction=2)}
    found += [
        Case("corrected-unipc", {**forecast, "solver": UniPC()}),
        Case("corrected-renoise", {**forecast, "solver": ReNoise()}),
        Case("clean-pass", {"clean_pass": True, "policy": FIXED, "kv": BUDGET}),
        Case("prefix", {"prefix_frames": 4, "prefix_noise": 0.02, "policy": FIXED}),
        Case(
            "recache",
            {"plan": "blockwise", "recache": frozenset({2}), "policy": FIXED, "kv": KVSettings(budget=2.0)},
            {"switches": (0, 2)},
        ),
        Case("bidirectional", {"attention": "bidirectional", "policy": FIXED}),
        Case("given", {"attention": "bidirectional", "prefix_frames": 2, "prefix_noise": 0.02}, reuses=False),
        Case("joint", {"attention": "joint", "clean_pass": True, "joint_frames": 8}, reuses=False),
        Case(
            "joint-kv-cpu",
            {"attention": "joint", "prefix_frames": 4, "kv": replace(BUDGET, device="cpu")},
            reuses=False,
        ),
        Case("joint-reused", {"attention": "joint", "policy": FIXED}),
        Case("one-branch", {"policy": FIXED}, {"branches": 1}),
        Case("prompt-switch", {"policy": FIXED}, {"switches": (0, 3)}),
        Case("forcing", {"plan": "blockwise", "solver": ReNoise(), "clean_pass": True, "kv": BUDGET}, reuses=False),
    ]
    for name, model in (("distilled", {}), ("base", {"base": True}), ("ranges", {"base": True, "ranges": (4, 2)})):
        for policy_name, policy in (("schedule", FIXED), ("patch", LOOKING[1][1])):
            for quantity in ("increment", "residual"):
                values = {"policy": policy, "quantity": QUANTITIES[quantity](), "kv": BUDGET}
                looks = policy_name == "patch"
                found.append(Case(f"magi-{name}-{policy_name}-{quantity}", values, model, magi=True, looks=looks))
    found.append(Case("magi-time", {"policy": FIXED_LISTS[0][1]}, magi=True))
    found.append(Case("magi-prefix-held", {"policy": FIXED, "prefix_frames": 3}, {"base": True}, magi=True))
    found += kept_unequally() + packed_on_the_host()
    found.append(Case("anchor", {"policy": FIXED, "anchor": LowFrequencies()}))
    found.append(Case("guidance-refresh", {"plan": "blockwise"}, {"every": 2}, reuses=False))
    kv = KVSettings(budget=1.0, compressor=ImportanceRedundancy(), device="cpu")
    found.append(Case("magi-kv-cpu", {"policy": FIXED, "kv": kv, "reuse_device": "cpu"}, magi=True))
    return found


def kept_unequally() -> list[Case]:
    """Budgets of layers and heads, and what compressors do beside choosing."""
    kinds = {
        "layers": KVSettings(budget=(1.0, 2.0), compressor=Recent()),
        "heads": KVSettings(budget=((1.0, 2.0, 1.0), (2.0, 1.0, 1.5)), compressor=Recent()),
        "heads-int4": KVSettings(budget=((1.0, 2.0, 1.0), 1.0), compressor=Recent(), storage=STORAGES["int4"]()),
        "at-finish": KVSettings(budget=1.0, compressor=ImportanceRedundancy(), at_finish=True),
        "reposition": KVSettings(budget=2.0, compressor=SinkWindow(reposition=True)),
        "shots": KVSettings(budget=2.0, compressor=ShotSink(sink=0.5, shots=(2,))),
        "reference-order": KVSettings(budget=1.5, compressor=ImportanceRedundancy(reference_order=True)),
    }
    return [
        Case(f"{name}-kv-{place or 'device'}", {"plan": "blockwise", "policy": FIXED, "kv": replace(kv, device=place)})
        for name, kv in kinds.items()
        for place in (None, "cpu")
    ]


def packed_on_the_host() -> list[Case]:
    """The device writes what the host packs, moves and hands back, in every order in which that happens."""
    int4 = KVSettings(budget=2.0, compressor=ImportanceRedundancy(), device="cpu", storage=STORAGES["int4"]())
    ends = replace(int4, storage=STORAGES["int4"](exact_sink=0.5, exact_recent=0.5))
    values = {"policy": FIXED, "clean_pass": True, "reuse_device": "cpu"}
    part = {"policy": Motion(**TOKENS, share=0.5), "plan": "blockwise", "kv": int4}
    return [
        *(Case(f"packed-cpu-{plan}", {**values, "kv": int4, "plan": plan}) for plan in tiny.PLAN_FIELDS),
        Case("packed-cpu-ends", {**values, "kv": ends, "plan": "blockwise"}),
        Case("packed-cpu-magi", {"policy": FIXED, "kv": replace(int4, budget=1.0)}, {"base": True}, magi=True),
        Case("tokens-packed-cpu", part),
    ]


CASES = cases()


def test_every_policy_and_quantity_has_a_case():
    assert {case.settings["policy"].name for case in CASES if "policy" in case.settings} == set(POLICIES)
    assert {q.name for case in CASES if (q := case.settings.get("quantity"))} == set(QUANTITIES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_values_and_traffic(case: Case, count: Count) -> None:
    """Bit for bit the CPU's latents, and nothing asked of the device but what :mod:`justified` says."""
    here, there = case.run("cpu"), case.run(DEVICE, count)
    assert torch.equal(here.latents, there.latents) and there.latents.isfinite().all()
    assert [(step.action, step.reason) for step in here.steps] == [(s.action, s.reason) for s in there.steps]
    assert (there.reused > 0) == case.reuses
    assert (there.parts > 0) == case.name.startswith("tokens-")
    assert (there.compressions > 0) == case.compresses
    check_copies(there.copies, prompts=case.prompts)
    check_syncs(there.syncs, looks=case.looks, kept_on_host=case.kept_on_host)
