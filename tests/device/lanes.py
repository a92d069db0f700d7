"""Where copies of K/V run on the pretended device."""

from __future__ import annotations

import pretend

from flowcache_core.kv import prefetch


class Behind(prefetch.AtOnce):
    """What is copied to the device is there at once, what the host gets when somebody has waited."""

    def settle(self) -> None:
        pretend.UNDER_WAY.settle()
