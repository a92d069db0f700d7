"""The pretended device, registered once for this process, and a count of what a run asks of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lanes
import pretend
import pytest

from flowcache_core import background
from flowcache_core.dry_run.traffic import Count, Traffic
from flowcache_core.kv import cache, prefetch

HERE = str(Path(__file__).parent)


@pytest.fixture(scope="session")
def registered() -> None:
    if pretend.REGISTER is None:
        pytest.skip(pretend.MISSING)
    pretend.register()


@pytest.fixture
def count(registered: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Count]:
    """What the test asks of the device, from here to its end; copies are left under way as on CUDA."""
    monkeypatch.setattr(background, "STREAMED", background.STREAMED | {pretend.NAME})
    for module in (prefetch, cache):
        monkeypatch.setattr(module, "lane_of", lambda place: lanes.Behind())
    pretend.UNDER_WAY.copies.clear()
    traffic = Traffic(ignored=(str(Path(pretend.__file__)),))
    with pretend.PretendDevice(), pretend.Frontend(), traffic:
        yield traffic.count
