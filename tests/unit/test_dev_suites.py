"""dev.py test: where it finds ComfyUI, which suites can run, and how what they counted is summed up."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from development import host, suites
from development.environment import python_in
from development.host import find_host, host_python, host_suite_blocker
from development.processes import DevError
from development.suites import NO_TESTS_COLLECTED, OWN_SUITES, SUITES, run_tests, split_arguments


def make_host(folder: Path) -> Path:
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").touch()
    return folder


def test_host_is_found_by_variable_then_by_place_then_by_default(tmp_path: Path) -> None:
    home = tmp_path / "home"
    default = make_host(home / "comfy" / "ComfyUI")
    around = make_host(tmp_path / "around")
    named = make_host(tmp_path / "named")
    installed = around / "custom_nodes" / "flowcache"
    elsewhere = tmp_path / "src" / "flowcache"
    assert find_host(installed, {"COMFYUI_DIR": str(named)}, home) == named
    assert find_host(installed, {}, home) == around
    assert find_host(elsewhere, {}, home) == default
    assert find_host(elsewhere, {}, tmp_path) is None


def test_a_variable_that_names_no_host_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DevError, match="COMFYUI_DIR: got .* accepted"):
        find_host(tmp_path, {"COMFYUI_DIR": str(tmp_path)}, tmp_path)


@pytest.mark.parametrize("place", [".venv/bin/python", "venv/bin/python", "../python_embeded/python.exe"])
def test_host_python_is_the_hosts_own(place: str, tmp_path: Path) -> None:
    host = make_host(tmp_path / "ComfyUI")
    assert host_python(host, windows=False) == Path(sys.executable)
    python = Path(os.path.normpath(host / place))
    python.parent.mkdir(parents=True)
    python.touch()
    assert host_python(host, windows=False) == python


def test_blockers_say_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "comfy install" in str(host_suite_blocker("host", None, None))
    python = Path("/host/python")
    monkeypatch.setattr(host, "import_failure", lambda host, python: None)
    monkeypatch.setattr(host, "succeeds", lambda command: "playwright" not in command[-1])
    monkeypatch.setattr(host, "find_chromium", lambda python: None)
    assert host_suite_blocker("host", tmp_path, python) is None
    lacking = host_suite_blocker("browser", tmp_path, python)
    assert lacking == f"ComfyUI's Python has no playwright: {python} -m pip install playwright"
    monkeypatch.setattr(host, "succeeds", lambda command: True)
    blocker = host_suite_blocker("browser", tmp_path, python)
    assert blocker == f"no Chromium: {python} -m playwright install chromium"


def blocker_of(folder: Path, module: str) -> str:
    """Of a host whose main library imports ``module`` and that has no Python of its own, so that this one is tried."""
    host = make_host(folder / "ComfyUI")
    (host / "comfy" / "cli_args.py").write_text("class args: pass")
    (host / "comfy" / "sd.py").write_text(f"import {module}")
    return str(host_suite_blocker("host", host, host_python(host)))


def test_a_host_without_a_python_that_can_import_it_is_no_failure(tmp_path: Path) -> None:
    """A folder that was only unpacked: the line says what to install and how."""
    blocker = blocker_of(tmp_path, "torch_of_nobody")
    host = tmp_path / "ComfyUI"
    assert "ModuleNotFoundError: No module named 'torch_of_nobody'" in blocker
    assert f"{host} has no Python of its own" in blocker and "\n" not in blocker
    assert f"{sys.executable} -m venv {host / '.venv'}" in blocker
    assert f"-m pip install -r {host / 'requirements.txt'} pytest" in blocker


def test_a_host_that_this_python_can_import_is_tested_with_it(tmp_path: Path) -> None:
    assert blocker_of(tmp_path, "json") == "None"


def test_a_host_whose_own_python_lacks_something_says_how_to_install_it(tmp_path: Path) -> None:
    host = make_host(tmp_path / "ComfyUI")
    python = python_in(host / ".venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", host / ".venv"], check=True)
    (host / "comfy" / "cli_args.py").write_text("import torch")
    blocker = host_suite_blocker("host", host, host_python(host))
    failure = "ModuleNotFoundError: No module named 'torch'"
    requirements = host / "requirements.txt"
    assert blocker == f"ComfyUI's Python cannot import it ({failure}): {python} -m pip install -r {requirements}"


def test_a_suite_that_cannot_run_is_skipped_with_that_line(
    checkout: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "tests/unit/test_u.py").write_text("def test_a(): pass\n")
    (checkout / "tests/host/test_h.py").write_text("def test_a(): assert False\n")
    monkeypatch.setattr(suites, "host_suite_blocker", host_suite_blocker)
    assert run_tests(Path(sys.executable), []) == 0
    lines = capfd.readouterr().out.splitlines()
    assert any(line.startswith("tests/host skipped: ") and "has no Python of its own" in line for line in lines)
    assert lines[-1] == "1 passed, 0 failed, 0 skipped"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folders' shape with one test for each suite, on a 'host' whose Python is this one."""
    root = tmp_path / "flowcache"
    for suite in SUITES:
        (root / "tests" / suite).mkdir(parents=True)
        if suite not in OWN_SUITES:
            (root / "tests" / suite / "pytest.ini").write_text("[pytest]\n")
    (root / "pyproject.toml").write_text("[tool.pytest.ini_options]\ntestpaths = ['tests/unit']\n")
    make_host(tmp_path / "ComfyUI")
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path / "ComfyUI"))
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # quicker
    monkeypatch.setattr(suites, "ROOT", root)
    monkeypatch.setattr(suites, "find_chromium", lambda python: "/usr/bin/chromium")
    monkeypatch.setattr(suites, "host_suite_blocker", lambda suite, host, python: None)
    return root


def last_line(capfd: pytest.CaptureFixture[str]) -> str:
    return capfd.readouterr().out.splitlines()[-1]


ROOT_IS_NOT_ON_THE_PATH = """
import pathlib, sys, os
def test_path():
    root = pathlib.Path(__file__).parents[2]
    assert root not in [pathlib.Path(p).resolve() for p in sys.path]
    assert pathlib.Path(os.environ["COMFYUI_DIR"]).name == "ComfyUI"
"""


def test_all_suites_run_and_the_last_line_adds_them_up(checkout: Path, capfd: pytest.CaptureFixture[str]) -> None:
    unit = "import pytest\ndef test_a(): pass\ndef test_b(): pass\ndef test_c(): pytest.skip()\n"
    (checkout / "tests/unit/test_u.py").write_text(unit)
    (checkout / "tests/host/test_h.py").write_text(ROOT_IS_NOT_ON_THE_PATH)
    (checkout / "tests/browser/test_b.py").write_text(ROOT_IS_NOT_ON_THE_PATH)
    assert run_tests(Path(sys.executable), []) == 0
    assert last_line(capfd) == "4 passed, 0 failed, 1 skipped"


def test_suites_without_a_host_have_processes_of_their_own(checkout: Path, capfd: pytest.CaptureFixture[str]) -> None:
    once = "import os\ndef test_a(): assert os.environ.setdefault('SEEN', {0!r}) == {0!r}\n"
    for suite in OWN_SUITES:
        (checkout / f"tests/{suite}/test_{suite}.py").write_text(once.format(suite))
    assert run_tests(Path(sys.executable), []) == 0
    assert last_line(capfd) == "3 passed, 0 failed, 0 skipped"
    assert run_tests(Path(sys.executable), ["tests/device"]) == 0
    assert last_line(capfd) == "1 passed, 0 failed, 0 skipped"


def test_failures_and_errors_of_a_host_suite_count(checkout: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (checkout / "tests/unit/test_u.py").write_text("def test_a(): pass\n")
    (checkout / "tests/host/test_h.py").write_text("def test_a(): assert False\ndef test_b(nothing): pass\n")
    assert run_tests(Path(sys.executable), []) == 1
    assert last_line(capfd) == "1 passed, 2 failed, 0 skipped"


def test_a_suite_that_breaks_off_counts_as_a_failure(checkout: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (checkout / "tests/unit/test_u.py").write_text("import os\ndef test_a(): os._exit(3)\n")
    assert run_tests(Path(sys.executable), ["-s"]) == 3
    assert last_line(capfd) == "0 passed, 1 failed, 0 skipped"
    assert run_tests(Path(sys.executable), []) == 1  # one of several processes
    assert last_line(capfd) == "0 passed, 1 failed, 0 skipped"


def test_a_selection_may_leave_one_suite_empty_but_not_all(checkout: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (checkout / "tests/unit/test_u.py").write_text("def test_a(): pass\n")
    (checkout / "tests/host/test_h.py").write_text("def test_b(): pass\n")
    assert run_tests(Path(sys.executable), ["-k", "test_b"]) == 0
    assert last_line(capfd) == "1 passed, 0 failed, 0 skipped"
    assert run_tests(Path(sys.executable), ["-k", "test_z"]) == NO_TESTS_COLLECTED


def test_a_path_runs_its_suite_alone(checkout: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (checkout / "tests/unit/test_u.py").write_text("def test_a(): assert False\n")
    (checkout / "tests/host/test_h.py").write_text("def test_a(): pass\ndef test_b(): pass\n")
    assert run_tests(Path(sys.executable), ["tests/host/test_h.py::test_b", "-q"]) == 0
    assert last_line(capfd) == "1 passed, 0 failed, 0 skipped"


def test_a_missing_host_is_one_line_unless_its_suite_was_asked_for(
    checkout: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "tests/unit/test_u.py").write_text("def test_a(): pass\n")
    (checkout / "tests/host/test_h.py").write_text("def test_a(): assert False\n")
    blocker: Callable[..., str] = lambda suite, host, python: "no ComfyUI found: how to get it"  # noqa: E731
    monkeypatch.setattr(suites, "host_suite_blocker", blocker)
    assert run_tests(Path(sys.executable), []) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines.count("tests/host skipped: no ComfyUI found: how to get it") == 1
    assert lines[-1] == "1 passed, 0 failed, 0 skipped"
    with pytest.raises(DevError, match="tests/host cannot run: no ComfyUI found"):
        run_tests(Path(sys.executable), ["tests/host"])


def test_arguments_are_paths_by_suite_and_options(checkout: Path) -> None:
    paths, options = split_arguments(["-x", "tests", "tests/unit::test_a", "-k", "reuse"], checkout)
    tests = checkout / "tests"
    assert paths == {
        "unit": [str(tests / "unit"), f"{tests / 'unit'}::test_a"],
        "device": [str(tests / "device")],
        "cuda": [str(tests / "cuda")],
        "host": [str(tests / "host")],
        "browser": [str(tests / "browser")],
    }
    assert options == ["-x", "-k", "reuse"]


def test_a_suite_is_shared_out_unless_somebody_watches(tmp_path: Path) -> None:
    file = tmp_path / "test_a.py"
    file.touch()
    assert suites.workers([], [], 2) == 2
    assert suites.workers([str(tmp_path)], ["-q", "-k", "reuse"], 4) == 4
    assert suites.workers([], [], 1) == 1 and suites.workers([], [], 96) == suites.MOST_WORKERS
    assert suites.workers([str(file)], [], 4) == 1 and suites.workers([f"{file}::test_b"], [], 4) == 1
    assert {suites.workers([], [option], 4) for option in ("-s", "-sv", "-x", "-n3", "--maxfail=1", "--pdb")} == {1}


def test_processes_that_share_a_suite_share_the_threads(
    checkout: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suites, "cores_here", lambda: 5)
    monkeypatch.setattr(suites, "MOST_WORKERS", 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name in "ab":
        seen = (
            f"import os\ndef test_a(): open({name!r}, 'w').write(f'{{os.getpid()}} ' + os.environ['OMP_NUM_THREADS'])\n"
        )
        (checkout / f"tests/unit/test_{name}.py").write_text(seen)
    assert run_tests(Path(sys.executable), []) == 0
    assert last_line(capfd) == "2 passed, 0 failed, 0 skipped"
    pids, threads = zip(*((checkout / name).read_text().split() for name in "ab"))
    assert len({*pids}) == 2 and {*threads} == {"2"}
