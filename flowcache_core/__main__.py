"""``python -m flowcache_core COMMAND``: hands the arguments to the command's module."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Sequence

from .errors import NotFiniteError, SettingError
from .parallel.errors import RankError

# Each module has ``main(argv) -> exit status`` and is imported only when its command is called.
COMMANDS = {
    "demo": ".commands.demo",
    "cost": ".commands.cost",
    "calibrate": ".commands.calibrate",
    "calibrate-heads": ".commands.calibrate_heads",
    "measure-kv": ".commands.measure_kv",
    "schedule": ".commands.schedule",
    "train-mini": ".commands.train_mini",
    "train-mini-magi": ".mini_magi.train",
    "evaluate-mini": ".commands.evaluate_mini",
    "evaluate-mini-magi": ".mini_magi.evaluate",
}
NOT_FINITE, BAD_INPUT, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str]) -> int:
    """Run one command. What the user can put right is one plain line and exit status 2; values that
    are not finite and ranks that fail are one line and 1."""
    if argv and argv[0] in ("-h", "--help"):
        print(f"python -m flowcache_core COMMAND, one of: {', '.join(COMMANDS)}. COMMAND --help lists its arguments.")
        return 0
    if not argv or argv[0] not in COMMANDS:
        print(SettingError("command", argv[0] if argv else None, ", ".join(COMMANDS)), file=sys.stderr)
        return BAD_INPUT
    command, rest = argv[0], list(argv[1:])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be no text
    try:
        status: int = importlib.import_module(COMMANDS[command], __package__).main(rest)
        return status
    except SettingError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return BAD_INPUT
    except (NotFiniteError, RankError) as error:
        print(f"{command}: {error}", file=sys.stderr)
        return NOT_FINITE
    except KeyboardInterrupt:
        print(f"\n{command}: stopped", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
