"""What goes wrong between ranks, as one clear error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class RankError(RuntimeError):
    """The run on several ranks has ended without a result. The text says which rank and why, in one line."""


class RankLost(RankError):
    """Another rank ended or did not answer in time; why, that rank knows, or whoever started it."""


@contextmanager
def answered(timeout: float) -> Iterator[None]:
    """Around what waits for other ranks: torch's own errors there become :class:`RankLost`."""
    try:
        yield
    except RankError:
        raise
    except RuntimeError as error:  # torch.distributed's errors are RuntimeErrors, of backends plain ones
        raise RankLost(f"another rank has ended, or did not answer within {timeout:g} s") from error
