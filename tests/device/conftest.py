"""The pretended device, registered once for this process, and a count of what a run asks of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pretend
import pytest

from flowcache_core.dry_run.traffic import Count, Traffic

HERE = str(Path(__file__).parent)


@pytest.fixture(scope="session")
def registered() -> None:
    if pretend.REGISTER is None:
        pytest.skip(pretend.MISSING)
    pretend.register()


@pytest.fixture
def count(registered: None) -> Iterator[Count]:
    """What the test asks of the device, from here to its end."""
    traffic = Traffic(ignored=(str(Path(pretend.__file__)),))
    with pretend.PretendDevice(), pretend.Frontend(), traffic:
        yield traffic.count
