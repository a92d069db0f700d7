"""``python -m flowcache_core.parallel.rank COMMAND``: one rank of a command, as :mod:`.launch` or torchrun starts it.

Rank 0 speaks; what goes wrong on any rank is left where the starter finds it and says it once.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import NotFiniteError, SettingError, one_line
from .errors import RankError, RankLost
from .pulse import beat, has_joined, has_left

ERRORS = "FLOWCACHE_RANK_ERRORS"  # folder for one text a rank, and its signs of life
LEFT = ".lost"  # behind the name of a text: it waited for another in vain
REFUSED, FAILED, LOST = 2, 1, 75


def follow_starter() -> None:
    """End this process when the one that started it has ended: its end of our standard input is closed then."""

    def wait() -> None:
        with suppress(OSError, ValueError):
            while os.read(0, 1024):
                pass
        leave_no_trace()

    if ERRORS in os.environ:
        threading.Thread(target=wait, daemon=True, name="flowcache-starter").start()
        show_life()


def follow_parent() -> None:
    """The same where standard input has messages to be read later; until then the parent is asked after."""
    parent = os.getppid()

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        leave_no_trace()

    threading.Thread(target=wait, daemon=True, name="flowcache-parent").start()
    show_life()


def leave_no_trace() -> None:
    """The end of a rank that nobody listens to any more; its starter did not get to take away the folder."""
    shutil.rmtree(os.environ.get(ERRORS, ""), ignore_errors=True)
    os._exit(LOST)


def show_life() -> None:
    beat(os.environ[ERRORS], os.environ["RANK"])


def say_joined() -> None:
    """From now on this rank answers within the timeout."""
    if ERRORS in os.environ:
        has_joined(os.environ[ERRORS], os.environ["RANK"])


def say_left() -> None:
    """From now on nobody waits for this rank."""
    if ERRORS in os.environ:
        has_left(os.environ[ERRORS], os.environ["RANK"])


def leave_error(text: str, suffix: str = "") -> None:
    """Where the starter looks; on the terminal where nobody does. suffix: of the file, for what is no fault of ours."""
    folder, rank = os.environ.get(ERRORS), os.environ.get("RANK", "0")
    if folder is None:
        print(f"rank {rank}: {text}", file=sys.stderr)
        return
    with suppress(OSError):
        (Path(folder) / f"{rank}{suffix}").write_text(text, encoding="utf-8")


def as_rank(work: Callable[[], int], follow: Callable[[], None] = follow_starter) -> int:
    """The exit status of ``work`` on this rank, its error left for the starter. follow: sees that it ends with it."""
    follow()
    if os.environ.get("RANK", "0") != "0":
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    try:
        return work()
    except SettingError as error:
        leave_error(str(error))
        return REFUSED
    except RankLost as error:
        leave_error(str(error), LEFT)
        return LOST
    except RankError as error:
        leave_error(str(error))
        return FAILED
    except NotFiniteError as error:
        leave_error(str(error))
        return FAILED
    except Exception as error:  # a fault of ours: its place helps whoever reports it
        leave_error(one_line(f"{type(error).__name__}: {error}", 400))
        traceback.print_exc()
        return FAILED


def main(argv: Sequence[str]) -> int:
    def command() -> int:
        from ..__main__ import COMMANDS

        return int(importlib.import_module(COMMANDS[argv[0]], "flowcache_core").main(argv[1:]))

    return as_rank(command)  # which follows the starter from the first, before what takes long to import


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
