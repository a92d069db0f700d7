"""One entry point for everything a user or a contributor runs: ``python dev.py`` lists the commands.

Standard library only. The first call makes ``.venv`` beside this file and installs ``requirements-dev.txt`` into it;
later calls find the stamp of that installation and start at once.
"""

from __future__ import annotations

import importlib.util
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from development.environment import Environment
from development.processes import INTERRUPTED, ROOT, DevError, become, run, say, succeeds
from development.suites import run_tests

MINIMUM_PYTHON = (3, 10)

COMMANDS = {
    "demo": "make a video twice on this machine, without and with FlowCache; show what was saved and what it cost",
    "cost": "FLOPs and K/V bytes of a model and preset, without weights (--model, --preset, --json)",
    "bench": "print the README's quick figures; the others by name",
    "schedule": "the table of computed steps of a preset",
    "calibrate": "a preset for your own target: share of steps, dB or seconds",
    "calibrate-heads": "how much sparsity each attention head of a model bears: p per head, as a preset",
    "measure-kv": "what keeping less of the history does to a model: the errors by which auto (MB) chooses",
    "train-mini": "train the bundled mini model again, on CPU or CUDA; resumes",
    "train-mini-magi": "train the bundled mini MAGI again, on the mini model's clips; resumes",
    "evaluate-mini": "measure how well the mini model does what its prompts say",
    "evaluate-mini-magi": "the same of the mini MAGI",
    "test": "run the tests; also those on a real ComfyUI, where there is one (further arguments go to pytest)",
    "lint": "ruff and mypy",
}
# Modules a command cannot start without: asked for under --no-venv, where nothing is installed.
NEEDS = {"test": ("pytest", "torch"), "lint": ("ruff", "mypy")}
RAY = "ray==2.60.0"


def current_python(command: str) -> Path:
    """The interpreter running this file, for ``--no-venv``; an error names what it lacks."""
    missing = [name for name in NEEDS.get(command, ("torch",)) if importlib.util.find_spec(name) is None]
    if missing:
        raise DevError(
            f"--no-venv: {sys.executable} has no {' and no '.join(missing)}. "
            f"Install with: {sys.executable} -m pip install -r requirements-dev.txt"
        )
    return Path(sys.executable)


def lint(python: Path, arguments: Sequence[str]) -> int:
    """ruff and mypy over what pyproject.toml says, mypy over the nodes; all run, so that one call shows everything."""
    codes = [run([python, "-m", "ruff", "check", *arguments]), run([python, "-m", "mypy"])]
    with tempfile.TemporaryDirectory() as folder:
        as_package(ROOT, Path(folder) / "flowcache_pack")
        cache, config = ROOT / ".mypy_cache" / "nodes", ROOT / "typings" / "mypy.ini"
        options: list[str | Path] = ["--config-file", config, "--cache-dir", cache, "-p", "flowcache_pack.nodes"]
        codes.append(run([python, "-m", "mypy", *options], cwd=Path(folder)))
    return max(codes)


def as_package(root: Path, place: Path) -> None:
    """The pack at ``place``, under a name that can be imported: a link, or a copy where links are not allowed."""
    try:
        place.symlink_to(root, target_is_directory=True)
    except OSError:
        place.mkdir()
        shutil.copy(root / "__init__.py", place)
        for part in ("nodes", "flowcache_core"):
            shutil.copytree(root / part, place / part, ignore=shutil.ignore_patterns("__pycache__", "weights"))


def core_command(python: Path, command: str, arguments: Sequence[str]) -> list[str | Path]:
    """The process behind a command that is neither ``test`` nor ``lint``."""
    if command == "bench":
        return [python, "-m", "benchmarks", *arguments]
    return [python, "-m", "flowcache_core", command, *arguments]


def wants_workers(arguments: Sequence[str]) -> bool:
    """Whether a sweep is to run on workers, for which it needs Ray."""
    return any(word.split("=")[0] in ("--workers", "--ray") for word in arguments)


def install_ray(python: Path) -> None:
    """Ray into the environment, once, when somebody asks for workers: nobody else needs it."""
    if succeeds([python, "-c", "import ray"]):
        return
    say(f"Installing {RAY} for the workers: once.")
    if run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", RAY]) != 0:
        say("It could not be installed; --workers 1 does the same without it.")


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return f"""usage: python dev.py COMMAND [arguments]

{chr(10).join(lines)}

  --no-venv  use this Python as it is: make no .venv, install nothing

COMMAND --help lists a command's own arguments. Paths are relative to this folder."""


def main(arguments: Sequence[str]) -> int:
    words = [word for word in arguments if word != "--no-venv"]
    if not words or words[0] in ("-h", "--help", "help"):
        say(usage())
        return 0
    command, rest = words[0], words[1:]
    if command not in COMMANDS:
        raise DevError(f"command: got {command[:80]!r}, accepted: {', '.join(COMMANDS)}")
    if len(words) < len(arguments):
        python = current_python(command)
    else:
        python = Environment(ROOT / ".venv", ROOT / "requirements-dev.txt").prepare()
    if command == "test":
        return run_tests(python, rest)
    if command == "lint":
        return lint(python, rest)
    if len(words) == len(arguments) and wants_workers(rest):
        install_ray(python)
    return become(core_command(python, command, rest))


if __name__ == "__main__":
    if sys.version_info < MINIMUM_PYTHON:
        needed = ".".join(map(str, MINIMUM_PYTHON))
        sys.exit(f"FlowCache needs Python {needed} or newer; this is {sys.version.split()[0]} ({sys.executable}).")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # unwinds, so children end too
    try:
        sys.exit(main(sys.argv[1:]))
    except DevError as error:
        sys.exit(f"dev.py: {error}")
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        sys.exit(INTERRUPTED)
