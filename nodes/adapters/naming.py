"""Errors that name the node whose field is wrong, also when they arise later, while another node samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ...flowcache_core.errors import NotFiniteError, SettingError
from .shown.said import said

CATEGORY = "FlowCache"


class NodeFieldError(SettingError):
    """A SettingError whose field begins with the node's display name, in the language of the page.

    To the host it is the ValueError that it is: what the frontend shows at once is three short lines, type first, and a
    type of our own comes with the path of its module.
    """

    def __init__(self, field: str, value: object, accepted: str) -> None:
        super().__init__(field, value, accepted)
        self.args = (said(str(self)),)


NodeFieldError.__module__, NodeFieldError.__qualname__ = ValueError.__module__, ValueError.__qualname__


@contextmanager
def naming(node: str) -> Iterator[None]:
    """Put ``node``, a display name, before the field of every SettingError raised inside that names none yet. What
    ended a run is said in the language of the page too.
    """
    try:
        yield
    except NodeFieldError:
        raise
    except SettingError as error:
        raise NodeFieldError(f"{node}, {error.field}", error.value, error.accepted) from error
    except NotFiniteError as error:
        error.args = (said(str(error)),)
        raise
