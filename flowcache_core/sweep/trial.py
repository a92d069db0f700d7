"""A task that says how often it was asked, to try workers with."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

from ..errors import require_count


def counted(number: int, folder: str, dies: int | None = None) -> dict[str, int]:
    """The square of ``number``, and a file in ``folder`` for every time this was asked; ``dies``: the number whose
    first worker is killed.
    """
    require_count("number", number, minimum=0)
    place = Path(folder)
    before = len(list(place.glob(f"{number}-*")))
    handle, _ = tempfile.mkstemp(prefix=f"{number}-{os.getpid()}-", dir=place)
    os.close(handle)
    if dies == number and before == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"square": number * number}
