"""The suites of tests, each in a process of its own, and the sum of what they counted."""

from __future__ import annotations

import os
import tempfile
import xml.etree.ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .host import find_chromium, find_host, host_python, host_suite_blocker
from .processes import INTERRUPTED, ROOT, DevError, run, say, succeeds

NO_TESTS_COLLECTED = 5  # pytest's exit code
OWN_SUITES = ("unit", "device", "cuda")  # folders of tests/ that need no host
SUITES = (*OWN_SUITES, "host", "browser")
MOST_WORKERS = 8  # each holds a torch of its own
IN_ORDER = ("-n", "-s", "-x", "-p", "--numprocesses", "--capture", "--pdb", "--trace", "--maxfail", "--exitfirst")


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


def workers(tests: Sequence[str], options: Sequence[str], cores: int) -> int:
    """How many processes are to share a suite that needs no host; 1: the suite's own.

    tests: folders or files, none for the whole suite. A single file, and what a person wants to see in order, is not
    shared out.
    """
    alone = any(not Path(test).is_dir() for test in tests)
    if alone or any(option.startswith(IN_ORDER) for option in options):
        return 1
    return min(cores, MOST_WORKERS)


def cores_here() -> int:
    """Processors that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def run_own_suite(python: Path, tests: Sequence[str], options: Sequence[str], junit: Path) -> int:
    """A suite that needs no host, on all processors where pytest-xdist is there: file by file, with a share of the
    threads for each process."""
    command: list[str | Path] = [python, "-m", "pytest", f"--junitxml={junit}", *options, *tests]
    cores = cores_here()
    count = workers(tests, options, cores)
    if count < 2 or not succeeds([python, "-c", "import xdist"]):
        return run(command, ROOT)
    threads = {"OMP_NUM_THREADS": str(max(1, cores // count))}
    shared = ["-p", "xdist", "-n", str(count), "--dist", "loadfile", "--max-worker-restart", "0"]
    return run([*command, *shared], ROOT, {**threads, **os.environ})


def has_tests(folder: Path) -> bool:
    return any(folder.rglob("test_*.py"))


def suite_command(python: Path, suite: Path, junit: Path, arguments: Sequence[str]) -> list[str | Path]:
    """pytest for a suite that runs inside the host: own configuration and root, so that this repository's root stays
    off ``sys.path`` (the host has a top-level ``nodes`` too). To be run with ``suite`` as the working directory."""
    return [
        python, "-m", "pytest", "-c", suite / "pytest.ini", "--rootdir", suite, "--import-mode=importlib",
        "-p", "no:cacheprovider", f"--junitxml={junit}", *arguments,
    ]  # fmt: skip


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
                code = run_own_suite(python, paths.get(suite, folders), options, junit)
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
