"""One entry point for everything a user or a contributor runs: ``python dev.py`` lists the commands.

Standard library only. The first call makes ``.venv`` beside this file and installs ``requirements-dev.txt`` into it;
later calls find the stamp of that installation and start at once.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).absolute().parent
MINIMUM_PYTHON = (3, 10)
NO_TESTS_COLLECTED = 5  # pytest's exit code
INTERRUPTED = 130
OWN_SUITES = ("unit", "device", "cuda")  # folders of tests/ that need no host
SUITES = (*OWN_SUITES, "host", "browser")

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
HOW_TO_GET_COMFYUI = "pip install comfy-cli && comfy install   (or set COMFYUI_DIR to an installation)"


class DevError(Exception):
    """Something the user can put right; printed without a traceback."""


# --- processes ---------------------------------------------------------------------------------------------------


def run(command: Sequence[str | Path], cwd: Path | None = None, env: Mapping[str, str] | None = None) -> int:
    """Run in the foreground, by default in this folder; the exit code is 130 after Ctrl-C, 128 + n after signal n."""
    child = subprocess.Popen([str(part) for part in command], cwd=cwd or ROOT, env=env)
    try:
        code = child.wait()
    except KeyboardInterrupt:  # the child has it too: let it finish its own way
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            child.wait(timeout=10)
        return INTERRUPTED
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
    return 128 - code if code < 0 else code


def become(command: Sequence[str | Path]) -> int:
    """Go on as ``command``, in this folder. Where the system has it there is no process between a user and the work,
    so that whatever ends the one, ends the other; Windows gets a child."""
    if os.name == "nt":
        return run(command)
    parts = [str(part) for part in command]
    os.chdir(ROOT)
    sys.stdout.flush()
    os.execv(parts[0], parts)


def succeeds(command: Sequence[str | Path]) -> bool:
    """Whether a quiet probe exits with 0."""
    parts = [str(part) for part in command]
    return subprocess.run(parts, cwd=tempfile.gettempdir(), capture_output=True).returncode == 0


# --- the environment ---------------------------------------------------------------------------------------------


def python_in(environment: Path, windows: bool = os.name == "nt") -> Path:
    """The interpreter of a virtual environment."""
    return environment / "Scripts" / "python.exe" if windows else environment / "bin" / "python"


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold a lock for ``folder``: two first calls must not install over each other. A killed holder frees it."""
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    with open(Path(tempfile.gettempdir()) / f"flowcache-dev-{name}.lock", "a+b") as handle:
        if os.name == "nt":
            import msvcrt

            while True:
                handle.seek(0)
                with contextlib.suppress(OSError):
                    msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
                    break
                time.sleep(0.5)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Environment:
    """The virtual environment of this checkout, and the stamp that says what is installed in it."""

    folder: Path
    requirements: Path

    INSTALLING = "installing"

    @property
    def python(self) -> Path:
        return python_in(self.folder)

    @property
    def stamp(self) -> Path:
        return self.folder / ".flowcache-stamp"

    def wanted(self) -> str:
        """What the stamp holds once all of the requirements are installed for this version of Python."""
        digest = hashlib.sha256(self.requirements.read_bytes()).hexdigest()
        return f"python {sys.version_info[0]}.{sys.version_info[1]} requirements {digest}"

    def stamped(self) -> str | None:
        try:
            return self.stamp.read_text(encoding="utf-8").strip()
        except OSError:
            return None

    def ready(self) -> bool:
        return self.python.exists() and self.stamped() == self.wanted()

    def version(self) -> str | None:
        """``major.minor`` of the environment's Python, as its pyvenv.cfg states it."""
        try:
            config = (self.folder / "pyvenv.cfg").read_text(encoding="utf-8")
        except OSError:
            return None
        found = re.search(r"^version(?:_info)?\s*=\s*(\d+\.\d+)", config, re.MULTILINE)
        return found[1] if found else None

    def prepare(self) -> Path:
        """Make or repair the environment where needed and return its interpreter."""
        if not self.ready():
            with only_one(self.folder):
                try:
                    if not self.ready():
                        self._install()
                except OSError as error:
                    raise DevError(f"{self.folder} could not be made: {error}") from error
        return self.python

    def _install(self) -> None:
        current = f"{sys.version_info[0]}.{sys.version_info[1]}"
        state = self.stamped()
        if not self._usable(current, state):
            if Path(sys.prefix) == self.folder:
                raise DevError(f"{self.folder} is incomplete and running this command: start it with another Python.")
            if state is None and self.version() not in (None, current):
                raise DevError(
                    f"{self.folder} was made by hand for Python {self.version()}, this is {current}: "
                    "delete it, call dev.py with that Python, or use --no-venv."
                )
            say(f"Making {self.folder} (Python {current}).")
            if state is not None:  # only what dev.py made is ever deleted
                shutil.rmtree(self.folder)
            self.folder.mkdir(exist_ok=True)
            self._write_stamp(self.INSTALLING)
            code = run([sys.executable, "-m", "venv", self.folder])
            if code == INTERRUPTED:
                raise KeyboardInterrupt
            if code != 0:
                raise DevError(
                    "Could not make a virtual environment: the lines above say why. "
                    "On Debian and Ubuntu: apt install python3-venv. Or use --no-venv."
                )
        say("Installing the pinned development requirements: once, a few minutes.")
        if sys.platform == "linux" and not {"PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"} & os.environ.keys():
            say(
                "(PyPI's torch for Linux is the large CUDA build. A machine without a GPU needs only the small one: "
                "stop, set PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu and call again.)"
            )
        self._write_stamp(self.INSTALLING)
        pip: list[str | Path] = [self.python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
        if not sys.stdout.isatty():
            pip.append("--quiet")
        code = run([*pip, "-r", self.requirements])
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code != 0:
            raise DevError(
                f"pip could not install {self.requirements.name} (exit code {code}); the lines above say why. "
                "Without a network it cannot work; behind a proxy set HTTPS_PROXY, with a mirror PIP_INDEX_URL. "
                "torch needs a 64-bit Python of a version it has been built for. Then call the same command again."
            )
        self._write_stamp(self.wanted())

    def _usable(self, current: str, state: str | None) -> bool:
        """Whether pip can go on in what is there; a half-done installation of ours is made anew instead."""
        if state == self.INSTALLING or not self.python.exists() or self.version() != current:
            return False
        return succeeds([self.python, "-m", "pip", "--version"]) or succeeds([self.python, "-m", "ensurepip"])

    def _write_stamp(self, text: str) -> None:
        part = self.stamp.with_suffix(".part")
        part.write_text(text + "\n", encoding="utf-8")
        os.replace(part, self.stamp)


def current_python(command: str) -> Path:
    """The interpreter running this file, for ``--no-venv``; an error names what it lacks."""
    missing = [name for name in NEEDS.get(command, ("torch",)) if importlib.util.find_spec(name) is None]
    if missing:
        raise DevError(
            f"--no-venv: {sys.executable} has no {' and no '.join(missing)}. "
            f"Install with: {sys.executable} -m pip install -r requirements-dev.txt"
        )
    return Path(sys.executable)


# --- tests -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped)

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def read_counts(junit: Path) -> Counts | None:
    """Sums of a JUnit file as pytest writes it (errors count as failed); None when there is no readable file."""
    try:
        suites = list(xml.etree.ElementTree.parse(junit).getroot().iter("testsuite"))
    except (OSError, xml.etree.ElementTree.ParseError):
        return None
    total = Counts()
    for suite in suites:
        tests, failures, errors, skipped = (int(suite.get(k, 0)) for k in ("tests", "failures", "errors", "skipped"))
        total += Counts(tests - failures - errors - skipped, failures + errors, skipped)
    return total


def split_arguments(arguments: Sequence[str], root: Path) -> tuple[dict[str, list[str]], list[str]]:
    """Paths of tests by suite (``unit``, ``host``, ``browser``), made absolute, and what is left: pytest's options."""
    tests = root / "tests"
    paths: dict[str, list[str]] = {}
    options = []
    for argument in arguments:
        name, separator, test = argument.partition("::")
        path = Path(os.path.abspath(root / name))
        if argument.startswith("-") or not path.exists() or not path.is_relative_to(tests):
            options.append(argument)
        elif path == tests:
            for suite in SUITES:
                paths.setdefault(suite, []).append(str(tests / suite))
        else:
            suite = path.relative_to(tests).parts[0]
            paths.setdefault(suite, []).append(f"{path}{separator}{test}")
    return paths, options


def find_host(root: Path, environ: Mapping[str, str], home: Path) -> Path | None:
    """ComfyUI by COMFYUI_DIR, else the one this pack is installed in, else comfy-cli's default; None without one."""
    named = environ.get("COMFYUI_DIR")
    if named:
        if not is_host(Path(named)):
            raise DevError(f"COMFYUI_DIR: got {named!r}, accepted: a folder with ComfyUI's main.py and comfy/.")
        return Path(named).absolute()
    places = [root.parent.parent] if root.parent.name == "custom_nodes" else []
    return next((place for place in [*places, home / "comfy" / "ComfyUI"] if is_host(place)), None)


def is_host(folder: Path) -> bool:
    return (folder / "main.py").is_file() and (folder / "comfy").is_dir()


def host_python(host: Path, windows: bool = os.name == "nt") -> Path:
    """The host's own interpreter (its .venv or venv, or that of the portable build), else the running one.

    The running one is right where ComfyUI was installed for it, as by comfy-cli; ``host_suite_blocker`` looks.
    """
    places = [python_in(host / name, windows) for name in (".venv", "venv")]
    places.append(host.parent / "python_embeded" / "python.exe")  # spelt so by the portable build
    return next((place for place in places if place.exists()), Path(sys.executable))


def find_chromium(python: Path) -> str | None:
    """A Chromium on the PATH, else the one Playwright installed for ``python``."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge"):
        found = shutil.which(name)
        if found:
            return found
    ask = "from playwright.sync_api import sync_playwright as p\nwith p() as b: print(b.chromium.executable_path)"
    answer = subprocess.run([str(python), "-c", ask], capture_output=True, text=True)
    path = answer.stdout.strip()
    return path if answer.returncode == 0 and Path(path).is_file() else None


def has_tests(folder: Path) -> bool:
    return any(folder.rglob("test_*.py"))


def suite_command(python: Path, suite: Path, junit: Path, arguments: Sequence[str]) -> list[str | Path]:
    """pytest for a suite that runs inside the host: own configuration and root, so that this repository's root stays
    off ``sys.path`` (the host has a top-level ``nodes`` too). To be run with ``suite`` as the working directory."""
    return [
        python, "-m", "pytest", "-c", suite / "pytest.ini", "--rootdir", suite, "--import-mode=importlib",
        "-p", "no:cacheprovider", f"--junitxml={junit}", *arguments,
    ]  # fmt: skip


IMPORT_HOST = "import sys; sys.path.insert(0, '.'); from comfy.cli_args import args; args.cpu = True; import comfy.sd"


@functools.cache
def import_failure(host: Path, python: Path) -> str | None:
    """Why ``python`` cannot import ComfyUI, in the last line that it says; None when it can."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    answer = subprocess.run([str(python), "-c", IMPORT_HOST], cwd=host, capture_output=True, text=True, env=environment)
    if answer.returncode == 0:
        return None
    return next(reversed(answer.stderr.splitlines()), f"exit code {answer.returncode}")


def host_suite_blocker(suite: str, host: Path | None, python: Path | None) -> str | None:
    """Why a suite on the real host cannot run here, and how to make it run; None if it can."""
    if host is None or python is None:
        return f"no ComfyUI found: {HOW_TO_GET_COMFYUI}"
    failure = import_failure(host, python)
    if failure is not None:
        if python == Path(sys.executable):
            own = host / ".venv"
            return (
                f"{host} has no Python of its own, and {python} cannot import it ({failure}): start dev.py with the "
                f"Python that runs ComfyUI, or make one: {python} -m venv {own} && "
                f"{python_in(own)} -m pip install -r {host / 'requirements.txt'} pytest"
            )
        return f"ComfyUI's Python cannot import it ({failure}): {python} -m pip install -r {host / 'requirements.txt'}"
    for module in ("pytest", "playwright") if suite == "browser" else ("pytest",):
        if not succeeds([python, "-c", f"import {module}"]):
            return f"ComfyUI's Python has no {module}: {python} -m pip install {module}"
    if suite == "browser" and find_chromium(python) is None:
        return f"no Chromium: {python} -m playwright install chromium"
    return None


def run_tests(python: Path, arguments: Sequence[str]) -> int:
    """The suites that need no host, then those on a real one, each in a process of its own; the last line sums up."""
    paths, options = split_arguments(arguments, ROOT)
    chosen = [suite for suite in SUITES if not paths or suite in paths]
    total, codes = Counts(), []
    with tempfile.TemporaryDirectory(prefix="flowcache-tests-") as folder:
        for suite in chosen:
            junit = Path(folder) / f"{suite}.xml"
            if suite != "unit" and not has_tests(ROOT / "tests" / suite):
                continue
            if suite in OWN_SUITES:
                folders = [] if suite == "unit" else [str(ROOT / "tests" / suite)]
                code = run([python, "-m", "pytest", f"--junitxml={junit}", *options, *paths.get(suite, folders)])
            else:
                host = find_host(ROOT, os.environ, Path.home())
                its_python = host_python(host) if host else None
                blocker = host_suite_blocker(suite, host, its_python)
                if blocker and suite in paths:
                    raise DevError(f"tests/{suite} cannot run: {blocker}")
                if blocker:
                    say(f"tests/{suite} skipped: {blocker}")
                    continue
                assert host is not None and its_python is not None
                env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"COMFYUI_DIR": str(host)}
                if suite == "browser":
                    env["CHROMIUM"] = find_chromium(its_python) or ""
                say(f"tests/{suite} on {host}")
                home = ROOT / "tests" / suite
                code = run(suite_command(its_python, home, junit, [*options, *paths.get(suite, [])]), home, env)
            if code == INTERRUPTED:
                raise KeyboardInterrupt
            codes.append(code)
            counts = read_counts(junit)
            if counts is None and code not in (0, NO_TESTS_COLLECTED):
                say(f"tests/{suite} broke off with exit code {code}")
                counts = Counts(failed=1)
            total += counts or Counts()
    # A selection such as -k may leave one suite empty, but not all of them.
    failures = [code for code in codes if code not in (0, NO_TESTS_COLLECTED)]
    say(str(total))
    if failures:
        return failures[0]
    return 0 if 0 in codes or not codes else NO_TESTS_COLLECTED


# --- commands ----------------------------------------------------------------------------------------------------


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


def say(text: str) -> None:
    print(text, flush=True)


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
