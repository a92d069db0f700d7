"""dev.py: the environment it makes, the processes it starts, and what it says when something fails. No network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import dev
import flowcache_core.__main__
from benchmarks.__main__ import BENCHMARKS

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
Command = list[str]


@pytest.fixture
def environment(tmp_path: Path) -> dev.Environment:
    requirements = tmp_path / "requirements-dev.txt"
    requirements.write_text("torch==2.13.0\n")
    return dev.Environment(tmp_path / ".venv", requirements)


def fake_venv(environment: dev.Environment, version: str = HERE) -> None:
    environment.python.parent.mkdir(parents=True, exist_ok=True)
    environment.python.touch()
    (environment.folder / "pyvenv.cfg").write_text(f"home = /usr/bin\nversion = {version}.1\n")


@pytest.fixture
def started(environment: dev.Environment, monkeypatch: pytest.MonkeyPatch) -> list[Command]:
    """Commands ``run`` was asked for; ``venv`` makes a fake environment, everything succeeds."""
    commands: list[Command] = []

    def run(command: Sequence[str | Path], *_: object) -> int:
        commands.append([str(part) for part in command])
        if "venv" in commands[-1]:
            fake_venv(environment)
        return 0

    monkeypatch.setattr(dev, "run", run)
    monkeypatch.setattr(dev, "become", run)
    monkeypatch.setattr(dev, "succeeds", lambda command: True)
    return commands


def modules(commands: list[Command]) -> list[str]:
    return [command[command.index("-m") + 1] for command in commands]


# --- environment -------------------------------------------------------------------------------------------------


def test_first_call_makes_and_installs_and_the_second_does_nothing(
    environment: dev.Environment, started: list[Command]
) -> None:
    assert environment.prepare() == environment.python
    assert modules(started) == ["venv", "pip"]
    assert started[1][0] == str(environment.python)
    assert started[1][-2:] == ["-r", str(environment.requirements)]
    environment.prepare()
    assert len(started) == 2


def test_changed_requirements_are_installed_into_the_same_environment(
    environment: dev.Environment, started: list[Command]
) -> None:
    environment.prepare()
    environment.requirements.write_text("torch==2.13.0\neinops==0.8.2\n")
    assert not environment.ready()
    environment.prepare()
    assert modules(started) == ["venv", "pip", "pip"]


def test_killed_installation_is_made_anew(environment: dev.Environment, started: list[Command]) -> None:
    fake_venv(environment)
    (environment.folder / "half a package").touch()
    environment.stamp.write_text("installing\n")
    environment.prepare()
    assert modules(started) == ["venv", "pip"]
    assert not (environment.folder / "half a package").exists()
    assert environment.ready()


def test_stamp_says_installing_until_all_is_in(environment: dev.Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def run(command: Sequence[str | Path], *_: object) -> int:
        seen.append(environment.stamped())
        fake_venv(environment)
        return 0

    monkeypatch.setattr(dev, "run", run)
    environment.prepare()
    assert seen == ["installing", "installing"]
    assert environment.stamped() == environment.wanted()


def test_environment_of_ours_for_another_python_is_made_anew(
    environment: dev.Environment, started: list[Command]
) -> None:
    fake_venv(environment, version="3.9")
    environment.stamp.write_text("python 3.9 requirements 0\n")
    environment.prepare()
    assert modules(started) == ["venv", "pip"]
    assert environment.version() == HERE


def test_environment_made_by_hand_is_used_and_never_deleted(
    environment: dev.Environment, started: list[Command]
) -> None:
    fake_venv(environment)
    environment.prepare()
    assert modules(started) == ["pip"]

    environment.stamp.unlink()
    fake_venv(environment, version="3.9")
    with pytest.raises(dev.DevError, match=r"made by hand for Python 3\.9"):
        environment.prepare()
    assert modules(started) == ["pip"]


@pytest.mark.parametrize(("failing", "message"), [("venv", "python3-venv"), ("pip", r"exit code 7.*network")])
def test_failure_of_a_step_is_told_and_leaves_no_valid_stamp(
    failing: str, message: str, environment: dev.Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: Sequence[str | Path], *_: object) -> int:
        if failing in command:
            return 7
        fake_venv(environment)
        return 0

    monkeypatch.setattr(dev, "run", run)
    with pytest.raises(dev.DevError, match=message):
        environment.prepare()
    assert not environment.ready()


def test_a_folder_that_cannot_be_made_is_told(environment: dev.Environment, started: list[Command]) -> None:
    environment.folder.write_text("a file in its place")
    with pytest.raises(dev.DevError, match=r"\.venv could not be made: .*exists"):
        environment.prepare()
    assert started == []


def test_ctrl_c_in_pip_is_an_interrupt_not_a_failure(
    environment: dev.Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_venv(environment)
    monkeypatch.setattr(dev, "succeeds", lambda command: True)
    monkeypatch.setattr(dev, "run", lambda *_: dev.INTERRUPTED)
    with pytest.raises(KeyboardInterrupt):
        environment.prepare()
    assert environment.stamped() == "installing"


def test_a_second_call_waits_for_the_installation_of_the_first(tmp_path: Path) -> None:
    code = "import dev, sys, pathlib\nwith dev.only_one(pathlib.Path(sys.argv[1])): print('in', flush=True)"
    with dev.only_one(tmp_path):
        command = [sys.executable, "-c", code, str(tmp_path)]
        other = subprocess.Popen(command, cwd=dev.ROOT, stdout=subprocess.PIPE, text=True)
        time.sleep(0.5)
        assert other.poll() is None
    assert other.communicate(timeout=20)[0] == "in\n"


def test_interpreter_of_an_environment_on_each_system() -> None:
    assert dev.python_in(Path("e"), windows=True) == Path("e/Scripts/python.exe")
    assert dev.python_in(Path("e"), windows=False) == Path("e/bin/python")


def test_no_venv_names_what_the_interpreter_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dev.current_python("test") == Path(sys.executable)
    monkeypatch.setattr(dev.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(dev.DevError, match=r"has no ruff and no mypy.*-m pip install -r requirements-dev\.txt"):
        dev.current_python("lint")


# --- commands ----------------------------------------------------------------------------------------------------


def test_help_has_a_line_for_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert dev.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, text in dev.COMMANDS.items():
        assert sum(line.split()[:1] == [name] and line.endswith(text) for line in lines) == 1


ROOT = Path(dev.__file__).parent


def test_every_command_and_benchmark_that_is_written_about_is_there() -> None:
    """In the docs, in what commands say of themselves, and in the core's own list."""
    own = {*dev.COMMANDS} - {"bench", "test", "lint"}
    assert own == {*flowcache_core.__main__.COMMANDS}
    said, texts = (
        set(),
        [path for name in ("docs", "flowcache_core", "benchmarks") for path in (ROOT / name).rglob("*")],
    )
    for path in (ROOT / "README.md", *(path for path in texts if path.suffix in (".md", ".py"))):
        said |= set(re.findall(r"dev\.py ([a-z][a-z-]*)(?: ([a-z_]+))?", path.read_text(encoding="utf-8")))
    assert len(said) > 20
    assert {command for command, _ in said} <= {*dev.COMMANDS}
    assert {name for command, name in said if command == "bench"} - {""} <= {*BENCHMARKS}


def test_unknown_command_lists_what_is_accepted() -> None:
    with pytest.raises(dev.DevError, match=r"'dmeo', accepted: demo, cost"):
        dev.main(["dmeo"])


@pytest.mark.parametrize("command", ["demo", "cost", "schedule", "calibrate", "train-mini", "evaluate-mini"])
def test_core_commands_get_their_arguments(command: str) -> None:
    assert dev.core_command(Path("py"), command, ["--seed", "3"]) == [
        Path("py"), "-m", "flowcache_core", command, "--seed", "3",
    ]  # fmt: skip


def test_bench_is_the_benchmarks_package() -> None:
    assert dev.core_command(Path("py"), "bench", ["--json"]) == [Path("py"), "-m", "benchmarks", "--json"]


@pytest.mark.parametrize("arguments", [["--no-venv", "cost", "--json"], ["cost", "--json", "--no-venv"]])
def test_no_venv_may_stand_anywhere_and_is_not_passed_on(
    arguments: list[str], started: list[Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dev.main(arguments) == 0
    assert started == [[sys.executable, "-m", "flowcache_core", "cost", "--json"]]


def test_lint_runs_all_and_returns_the_worst(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: Sequence[str | Path], cwd: Path | None = None) -> int:
        commands.append([str(part) for part in command])
        if cwd is not None:  # the nodes, in a package as the host imports them
            assert (cwd / "flowcache_pack" / "nodes" / "__init__.py").is_file()
        return len(commands) % 3

    monkeypatch.setattr(dev, "run", run)
    assert dev.lint(Path("py"), []) == 2
    assert [command[2] for command in commands] == ["ruff", "mypy", "mypy"]
    assert commands[2][-2:] == ["-p", "flowcache_pack.nodes"]


def test_a_package_is_copied_where_links_are_not_allowed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "symlink_to", lambda *_, **__: (_ for _ in ()).throw(OSError("a privilege is missing")))
    dev.as_package(dev.ROOT, tmp_path / "pack")
    assert (tmp_path / "pack" / "__init__.py").is_file() and (tmp_path / "pack" / "nodes" / "kv.py").is_file()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_exit_codes_come_through(tmp_path: Path) -> None:
    assert dev.run([sys.executable, "-c", "raise SystemExit(7)"], tmp_path) == 7


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_death_by_signal_is_128_plus_its_number(tmp_path: Path) -> None:
    assert dev.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], tmp_path) == 137


def test_ctrl_c_waits_for_the_child_and_returns_130(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    children = []

    class Interrupted(subprocess.Popen):  # type: ignore[type-arg]
        def wait(self, timeout: float | None = None) -> int:
            if self not in children:
                children.append(self)
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(dev.subprocess, "Popen", Interrupted)
    marker = tmp_path / "finished"
    code = f"import time, pathlib; time.sleep(0.3); pathlib.Path({str(marker)!r}).touch()"
    assert dev.run([sys.executable, "-c", code], tmp_path) == 130
    assert marker.exists() and children[0].returncode == 0


@pytest.mark.skipif(os.name == "nt", reason="there it is a child")
def test_a_command_is_this_very_process(tmp_path: Path) -> None:
    """Whoever kills dev.py kills the work. The file's text is what it says where it runs."""
    (tmp_path / "dev.py").write_text((dev.ROOT / "dev.py").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "benchmarks.py").write_text("import os, sys, time\nprint(os.getpid(), os.getcwd(), sys.argv[1:])\n")
    command = [sys.executable, str(tmp_path / "dev.py"), "bench", "curve", "--no-venv"]
    asked = subprocess.Popen(command, cwd="/", stdout=subprocess.PIPE, text=True)
    assert asked.communicate()[0] == f"{asked.pid} {tmp_path} ['curve']\n" and asked.returncode == 0


def test_errors_are_one_line_without_traceback() -> None:
    result = subprocess.run([sys.executable, "dev.py", "nonsense"], cwd=dev.ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith("dev.py: command: got 'nonsense'") and len(result.stderr.splitlines()) == 1


# --- tests on a real host ----------------------------------------------------------------------------------------


HOST_SUITE_BLOCKER = dev.host_suite_blocker


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
    assert dev.find_host(installed, {"COMFYUI_DIR": str(named)}, home) == named
    assert dev.find_host(installed, {}, home) == around
    assert dev.find_host(elsewhere, {}, home) == default
    assert dev.find_host(elsewhere, {}, tmp_path) is None


def test_a_variable_that_names_no_host_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(dev.DevError, match="COMFYUI_DIR: got .* accepted"):
        dev.find_host(tmp_path, {"COMFYUI_DIR": str(tmp_path)}, tmp_path)


@pytest.mark.parametrize("place", [".venv/bin/python", "venv/bin/python", "../python_embeded/python.exe"])
def test_host_python_is_the_hosts_own(place: str, tmp_path: Path) -> None:
    host = make_host(tmp_path / "ComfyUI")
    assert dev.host_python(host, windows=False) == Path(sys.executable)
    python = Path(os.path.normpath(host / place))
    python.parent.mkdir(parents=True)
    python.touch()
    assert dev.host_python(host, windows=False) == python


def test_blockers_say_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "comfy install" in str(dev.host_suite_blocker("host", None, None))
    python = Path("/host/python")
    monkeypatch.setattr(dev, "import_failure", lambda host, python: None)
    monkeypatch.setattr(dev, "succeeds", lambda command: "playwright" not in command[-1])
    monkeypatch.setattr(dev, "find_chromium", lambda python: None)
    assert dev.host_suite_blocker("host", tmp_path, python) is None
    lacking = dev.host_suite_blocker("browser", tmp_path, python)
    assert lacking == f"ComfyUI's Python has no playwright: {python} -m pip install playwright"
    monkeypatch.setattr(dev, "succeeds", lambda command: True)
    blocker = dev.host_suite_blocker("browser", tmp_path, python)
    assert blocker == f"no Chromium: {python} -m playwright install chromium"


def blocker_of(folder: Path, module: str) -> str:
    """Of a host whose main library imports ``module`` and that has no Python of its own, so that this one is tried."""
    host = make_host(folder / "ComfyUI")
    (host / "comfy" / "cli_args.py").write_text("class args: pass")
    (host / "comfy" / "sd.py").write_text(f"import {module}")
    return str(dev.host_suite_blocker("host", host, dev.host_python(host)))


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
    python = dev.python_in(host / ".venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", host / ".venv"], check=True)
    (host / "comfy" / "cli_args.py").write_text("import torch")
    blocker = dev.host_suite_blocker("host", host, dev.host_python(host))
    failure = "ModuleNotFoundError: No module named 'torch'"
    requirements = host / "requirements.txt"
    assert blocker == f"ComfyUI's Python cannot import it ({failure}): {python} -m pip install -r {requirements}"


def test_a_suite_that_cannot_run_is_skipped_with_that_line(
    checkout: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "tests/unit/test_u.py").write_text("def test_a(): pass\n")
    (checkout / "tests/host/test_h.py").write_text("def test_a(): assert False\n")
    monkeypatch.setattr(dev, "host_suite_blocker", HOST_SUITE_BLOCKER)
    assert dev.run_tests(Path(sys.executable), []) == 0
    lines = capfd.readouterr().out.splitlines()
    assert any(line.startswith("tests/host skipped: ") and "has no Python of its own" in line for line in lines)
    assert lines[-1] == "1 passed, 0 failed, 0 skipped"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folders' shape with one test for each suite, on a 'host' whose Python is this one."""
    root = tmp_path / "flowcache"
    for suite in dev.SUITES:
        (root / "tests" / suite).mkdir(parents=True)
        if suite not in dev.OWN_SUITES:
            (root / "tests" / suite / "pytest.ini").write_text("[pytest]\n")
    (root / "pyproject.toml").write_text("[tool.pytest.ini_options]\ntestpaths = ['tests/unit']\n")
    make_host(tmp_path / "ComfyUI")
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path / "ComfyUI"))
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # quicker
    monkeypatch.setattr(dev, "ROOT", root)
    monkeypatch.setattr(dev, "find_chromium", lambda python: "/usr/bin/chromium")
    monkeypatch.setattr(dev, "host_suite_blocker", lambda suite, host, python: None)
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
    assert dev.run_tests(Path(sys.executable), []) == 0
    assert last_line(capfd) == "4 passed, 0 failed, 1 skipped"


def test_suites_without_a_host_have_processes_of_their_own(checkout: Path, capfd: pytest.CaptureFixture[str]) -> None:
    once = "import os\ndef test_a(): assert os.environ.setdefault('SEEN', {0!r}) == {0!r}\n"
    for suite in dev.OWN_SUITES:
        (checkout / f"tests/{suite}/test_{suite}.py").write_text(once.format(suite))
    assert dev.run_tests(Path(sys.executable), []) == 0
    assert last_line(capfd) == "3 passed, 0 failed, 0 skipped"
    assert dev.run_tests(Path(sys.executable), ["tests/device"]) == 0
    assert last_line(capfd) == "1 passed, 0 failed, 0 skipped"


def test_failures_and_errors_of_a_host_suite_count(checkout: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (checkout / "tests/unit/test_u.py").write_text("def test_a(): pass\n")
    (checkout / "tests/host/test_h.py").write_text("def test_a(): assert False\ndef test_b(nothing): pass\n")
    assert dev.run_tests(Path(sys.executable), []) == 1
    assert last_line(capfd) == "1 passed, 2 failed, 0 skipped"


def test_a_suite_that_breaks_off_counts_as_a_failure(checkout: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (checkout / "tests/unit/test_u.py").write_text("import os\ndef test_a(): os._exit(3)\n")
    assert dev.run_tests(Path(sys.executable), []) == 3
    assert last_line(capfd) == "0 passed, 1 failed, 0 skipped"


def test_a_selection_may_leave_one_suite_empty_but_not_all(checkout: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (checkout / "tests/unit/test_u.py").write_text("def test_a(): pass\n")
    (checkout / "tests/host/test_h.py").write_text("def test_b(): pass\n")
    assert dev.run_tests(Path(sys.executable), ["-k", "test_b"]) == 0
    assert last_line(capfd) == "1 passed, 0 failed, 0 skipped"
    assert dev.run_tests(Path(sys.executable), ["-k", "test_z"]) == dev.NO_TESTS_COLLECTED


def test_a_path_runs_its_suite_alone(checkout: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (checkout / "tests/unit/test_u.py").write_text("def test_a(): assert False\n")
    (checkout / "tests/host/test_h.py").write_text("def test_a(): pass\ndef test_b(): pass\n")
    assert dev.run_tests(Path(sys.executable), ["tests/host/test_h.py::test_b", "-q"]) == 0
    assert last_line(capfd) == "1 passed, 0 failed, 0 skipped"


def test_a_missing_host_is_one_line_unless_its_suite_was_asked_for(
    checkout: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "tests/unit/test_u.py").write_text("def test_a(): pass\n")
    (checkout / "tests/host/test_h.py").write_text("def test_a(): assert False\n")
    blocker: Callable[..., str] = lambda suite, host, python: "no ComfyUI found: how to get it"  # noqa: E731
    monkeypatch.setattr(dev, "host_suite_blocker", blocker)
    assert dev.run_tests(Path(sys.executable), []) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines.count("tests/host skipped: no ComfyUI found: how to get it") == 1
    assert lines[-1] == "1 passed, 0 failed, 0 skipped"
    with pytest.raises(dev.DevError, match="tests/host cannot run: no ComfyUI found"):
        dev.run_tests(Path(sys.executable), ["tests/host"])


def test_arguments_are_paths_by_suite_and_options(checkout: Path) -> None:
    paths, options = dev.split_arguments(["-x", "tests", "tests/unit::test_a", "-k", "reuse"], checkout)
    tests = checkout / "tests"
    assert paths == {
        "unit": [str(tests / "unit"), f"{tests / 'unit'}::test_a"],
        "device": [str(tests / "device")],
        "cuda": [str(tests / "cuda")],
        "host": [str(tests / "host")],
        "browser": [str(tests / "browser")],
    }
    assert options == ["-x", "-k", "reuse"]
