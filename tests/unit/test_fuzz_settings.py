"""Settings of every kind with values that are none: refused by our own error, naming a field, within seconds."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from test_fuzz_files import bounded

from flowcache_core.engine import EngineSettings
from flowcache_core.errors import SettingError
from flowcache_core.kv import COMPRESSORS
from flowcache_core.kv.settings import KVSettings
from flowcache_core.models.magi.caption_cleaning import LONGEST, clean_caption
from flowcache_core.models.magi.config import MAGI_4_5B, MagiConfig
from flowcache_core.models.magi.guidance import GuidanceScales
from flowcache_core.models.magi.text import TokenSwitches
from flowcache_core.models.magi.vae import MagiVAEConfig, Tiling
from flowcache_core.models.wan.config import WanConfig
from flowcache_core.plan import PLANS
from flowcache_core.plan.base import Chunk, ChunkStep, Plan, Tick
from flowcache_core.plan.blockwise import blockwise
from flowcache_core.plan.staggered import overlap_windows, staggered
from flowcache_core.plan.window import window
from flowcache_core.reuse import DISTANCES, POLICIES, QUANTITIES
from flowcache_core.reuse.build import build_policy, build_quantity
from flowcache_core.reuse.chunkwise import Chunkwise
from flowcache_core.reuse.never import Never
from flowcache_core.schedule import Schedule, from_sigmas, magi, shifted, skyreels
from flowcache_core.video.magi import MagiSettings
from flowcache_core.video.skyreels import SkyReelsSettings

LOOP: list[Any] = []
LOOP.append(LOOP)
VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 7, 50, 97, 10**9, 2**31, 2**63, 2**64, 2**70, 10**400, -(10**400),
    0.0, 0.5, 1.0, -0.5, 1e-300, 1e308, math.nan, math.inf, -math.inf, 1j,
    "", "x", "cpu", "cuda:99", "meta", "no such device", "block-causal", "token", "7", "\ud800", "x" * 10_000, b"x",
    [], [1], [0, 2], [1.5, None], [math.nan], [10**400], LOOP, (), (0,), (0, 1), (0.0, 1.0), ("a",), {},
    {"name": "time"},
    {"name": ["never"]}, {1: 2}, {"a": LOOP}, set(), frozenset([1]), frozenset(["a"]), frozenset([2**70]),
    object(), object, len, Path("x"), torch.zeros(2), torch.float32, torch.int8, torch.device("cpu"),
    Never(), Chunkwise(), KVSettings(), Chunk(0, 0, 1), Tick(0, ()),
)  # fmt: skip

PLAN = blockwise(6, 3, 4)
SCHEDULE = shifted(4, 5.0)
# What is made, and arguments with which it works.
MAKERS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "KVSettings": (KVSettings, {}),
    "EngineSettings": (EngineSettings, {"plan": PLAN, "schedule": SCHEDULE}),
    "SkyReelsSettings": (SkyReelsSettings, {"frames": 17, "base_frames": 17, "steps": 4}),
    "SkyReelsSettings of a preset": (
        SkyReelsSettings.of_preset, {"model": "skyreels-v2-1.3b-540p", "preset": "vanilla", "frames": 17}),
    "MagiSettings": (MagiSettings, {"frames": 24, "steps": 8}),
    "GuidanceScales": (GuidanceScales, {}),
    "TokenSwitches": (TokenSwitches, {}),
    "Tiling": (Tiling, {}),
    "WanConfig": (WanConfig, {"dim": 128, "ffn_dim": 8, "num_layers": 1, "num_heads": 1}),
    "MagiConfig": (MagiConfig, {field.name: getattr(MAGI_4_5B, field.name) for field in fields(MagiConfig)}),
    "MagiVAEConfig": (MagiVAEConfig, {}),
    "Schedule": (Schedule, {"sigmas": (1.0, 0.0), "timesteps": (1000.0,)}),
    "Plan": (Plan, {field.name: getattr(PLAN, field.name) for field in fields(Plan)}),
    "Plan of a chunk": (
        lambda **given: Plan("x", (Chunk(**given),), 1, (Tick(0, (ChunkStep(0, 0),)),)),
        {"index": 0, "first_frame": 0, "frames": 1}),
    "Plan of a step": (
        lambda **given: Plan("x", (Chunk(0, 0, 1),), 1, (Tick(0, (ChunkStep(**given),)),)), {"chunk": 0, "step": 0}),
    "Plan of a tick": (
        lambda **given: Plan("x", (Chunk(0, 0, 1),), 1, (Tick(**given),)), {"index": 0, "steps": (ChunkStep(0, 0),)}),
    "blockwise": (blockwise, {"frames": 6, "chunk_frames": 3, "steps": 4}),
    "staggered": (staggered, {"frames": 6, "chunk_frames": 3, "steps": 4, "ar_step": 2, "base_frames": 6}),
    "window": (window, {"frames": 6, "chunk_frames": 3, "steps": 4, "window_chunks": 2,
                        "prefix_frames": 1}),
    **{f"plan settings {name}": (kind, {}) for name, kind in PLANS.items()},
    "overlap_windows": (overlap_windows, {"frames": 9, "base_frames": 6, "overlap_frames": 3, "chunk_frames": 3}),
    "shifted": (shifted, {"steps": 4, "shift": 5.0, "start": 1.0}),
    "skyreels": (skyreels, {"steps": 4, "shift": 5.0}),
    "magi": (magi, {"steps": 8, "shortcut_mode": "8,16,16"}),
    "from_sigmas": (from_sigmas, {"sigmas": [1.0, 0.0]}),
    "build_quantity": (build_quantity, {"settings": "velocity"}),
}  # fmt: skip
MAKERS |= {f"policy {name}": (kind, {}) for name, kind in POLICIES.items()}
MAKERS |= {f"built {name}": (lambda n=name, **given: build_policy({"name": n, **given}), {}) for name in POLICIES}
MAKERS |= {f"quantity {name}": (kind, {}) for name, kind in QUANTITIES.items()}
MAKERS |= {f"distance {name}": (kind, {}) for name, kind in DISTANCES.items()}
MAKERS |= {f"compressor {name}": (kind, {}) for name, kind in COMPRESSORS.items()}
NAMES = {
    "SkyReelsSettings of a preset": ["model", "preset", *(field.name for field in fields(SkyReelsSettings))],
    **{f"built {name}": ["name", *(field.name for field in fields(kind))] for name, kind in POLICIES.items()},
}


def names_of(what: str) -> list[str]:
    make, given = MAKERS[what]
    return NAMES.get(what) or sorted({*given, *(f.name for f in (fields(make) if isinstance(make, type) else ()))})


def use(made: Any) -> None:
    """What is asked of settings before a run."""
    if isinstance(made, EngineSettings):
        made.notes()
    if isinstance(made, KVSettings):
        made.note(PLAN)
        made.layer_budgets(2)
    if hasattr(made, "warmup_steps"):
        made.note(8)
    if isinstance(made, Plan):
        made.describe()


@pytest.mark.parametrize("what", MAKERS)
def test_only_our_own_error(what: str) -> None:
    make, given = MAKERS[what]
    use(make(**given))
    names, wrong = names_of(what), []
    tries = [{name: value} for name in names for value in VALUES]
    draw = random.Random(what)
    tries += [{name: draw.choice(VALUES) for name in names if draw.random() < 0.3} for _ in range(100)]
    draw.shuffle(tries)
    for changes in tries[:400]:
        try:
            with bounded(f"{what} with {list(changes)}"):
                use(make(**{**given, **changes}))
        except SettingError as error:
            if len(str(error)) > 2500 or not str(error).isprintable():
                wrong.append(f"{changes}: {len(str(error))} characters")
        except Exception as error:
            shown = {name: str(type(value)) if value is LOOP else str(value)[:40] for name, value in changes.items()
                     if not (isinstance(value, int) and abs(value) > 2**70)}  # fmt: skip
            wrong.append(f"{shown}: {type(error).__name__}: {str(error)[:200]}")
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong[:15])


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: SkyReelsSettings(frames=10**9), "frames: got 1000000000, accepted: a whole number >= 1 and <= 399997"),
        (lambda: SkyReelsSettings(height=2**20), "height"),
        (lambda: SkyReelsSettings(base_frames=4 * 10**9 + 1), "base_frames"),
        (lambda: MagiSettings(frames=10**9), "frames"),
        (lambda: blockwise(10**9, 3, 50), "frames: got 1000000000, accepted: a whole number >= 1 and <= 100000"),
        (lambda: blockwise(99_999, 1, 50), "steps: got '50 steps of 99999 chunks'"),
        (lambda: shifted(10**12, 5.0), "steps"),
        (lambda: magi(10**6), "steps: got 1000000, accepted: a whole number >= 1 and <= 10000"),
    ],
)
def test_what_is_too_much_is_refused_before_it_is_made(make: Callable[[], object], named: str) -> None:
    with bounded(named), pytest.raises(SettingError) as caught:
        make()
    assert str(caught.value).startswith(named)


def test_a_long_video_of_many_windows_is_quick() -> None:
    with bounded("windows"):
        settings = SkyReelsSettings(frames=399_997, base_frames=97, overlap_frames=77)
        assert len(settings.engines) == len(settings.windows) > 19_000


SIGNS = (
    "<", "<!", "<![", "<![CDATA[", "<!--", "&#", "&#x110000;", "&quot", "%", "%zz", "_", "-", "a", "A1b2", ".png", "@",
    "\0", "\x1b[31m", "\ud800", "\u200d", "\ufb01", "\u5317", "http://", "www.", " ", "\n", "1" * 30, "'", '"', "\\n",
    "(",
)  # fmt: skip


def test_captions_of_any_signs_are_cleaned() -> None:
    draw = random.Random("captions")
    for number in range(300):
        text = "".join(draw.choice(SIGNS) for _ in range(draw.randrange(30)))
        with bounded(f"caption {number}"):
            assert isinstance(clean_caption(text), str)


@pytest.mark.parametrize("sign", [*SIGNS, "a.", "a@b.c", "<a>", "<script>", "1.1.1.1", "&amp;", "x_y-", "page 1 "])
def test_long_captions_are_cleaned_in_time(sign: str) -> None:
    text = (sign * LONGEST)[:LONGEST]
    with bounded(f"caption of {sign!r}"):
        clean_caption(text)
    with pytest.raises(SettingError, match=f"{LONGEST + 1} characters"):
        clean_caption(text + "x")
