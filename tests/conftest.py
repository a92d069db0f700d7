"""Settings of the unit tests (the suites on a real host have their own root and do not read this)."""

from __future__ import annotations

import os

from hypothesis import settings

os.environ.setdefault("MPLBACKEND", "Agg")

# No deadline: a busy machine is not a bug. Derandomised in CI, so that a change is judged by the same examples.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")
