"""The environment that dev.py makes, and what it says when a step of it fails. No network."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from development import environment as module
from development.environment import Environment, only_one, python_in
from development.processes import INTERRUPTED, ROOT, DevError

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
Command = list[str]


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    requirements = tmp_path / "requirements-dev.txt"
    requirements.write_text("torch==2.13.0\n")
    return Environment(tmp_path / ".venv", requirements)


def fake_venv(environment: Environment, version: str = HERE) -> None:
    environment.python.parent.mkdir(parents=True, exist_ok=True)
    environment.python.touch()
    (environment.folder / "pyvenv.cfg").write_text(f"home = /usr/bin\nversion = {version}.1\n")


@pytest.fixture
def started(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> list[Command]:
    """Commands ``run`` was asked for; ``venv`` makes a fake environment, everything succeeds."""
    commands: list[Command] = []

    def run(command: Sequence[str | Path], *_: object) -> int:
        commands.append([str(part) for part in command])
        if "venv" in commands[-1]:
            fake_venv(environment)
        return 0

    monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr(module, "succeeds", lambda command: True)
    return commands


def modules(commands: list[Command]) -> list[str]:
    return [command[command.index("-m") + 1] for command in commands]


def test_first_call_makes_and_installs_and_the_second_does_nothing(
    environment: Environment, started: list[Command]
) -> None:
    assert environment.prepare() == environment.python
    assert modules(started) == ["venv", "pip"]
    assert started[1][0] == str(environment.python)
    assert started[1][-2:] == ["-r", str(environment.requirements)]
    environment.prepare()
    assert len(started) == 2


def test_changed_requirements_are_installed_into_the_same_environment(
    environment: Environment, started: list[Command]
) -> None:
    environment.prepare()
    environment.requirements.write_text("torch==2.13.0\neinops==0.8.2\n")
    assert not environment.ready()
    environment.prepare()
    assert modules(started) == ["venv", "pip", "pip"]


def test_killed_installation_is_made_anew(environment: Environment, started: list[Command]) -> None:
    fake_venv(environment)
    (environment.folder / "half a package").touch()
    environment.stamp.write_text("installing\n")
    environment.prepare()
    assert modules(started) == ["venv", "pip"]
    assert not (environment.folder / "half a package").exists()
    assert environment.ready()


def test_stamp_says_installing_until_all_is_in(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def run(command: Sequence[str | Path], *_: object) -> int:
        seen.append(environment.stamped())
        fake_venv(environment)
        return 0

    monkeypatch.setattr(module, "run", run)
    environment.prepare()
    assert seen == ["installing", "installing"]
    assert environment.stamped() == environment.wanted()


def test_environment_of_ours_for_another_python_is_made_anew(environment: Environment, started: list[Command]) -> None:
    fake_venv(environment, version="3.9")
    environment.stamp.write_text("python 3.9 requirements 0\n")
    environment.prepare()
    assert modules(started) == ["venv", "pip"]
    assert environment.version() == HERE


def test_environment_made_by_hand_is_used_and_never_deleted(environment: Environment, started: list[Command]) -> None:
    fake_venv(environment)
    environment.prepare()
    assert modules(started) == ["pip"]

    environment.stamp.unlink()
    fake_venv(environment, version="3.9")
    with pytest.raises(DevError, match=r"made by hand for Python 3\.9"):
        environment.prepare()
    assert modules(started) == ["pip"]


@pytest.mark.parametrize(("failing", "message"), [("venv", "python3-venv"), ("pip", r"exit code 7.*network")])
def test_failure_of_a_step_is_told_and_leaves_no_valid_stamp(
    failing: str, message: str, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: Sequence[str | Path], *_: object) -> int:
        if failing in command:
            return 7
        fake_venv(environment)
        return 0

    monkeypatch.setattr(module, "run", run)
    with pytest.raises(DevError, match=message):
        environment.prepare()
    assert not environment.ready()


def test_a_folder_that_cannot_be_made_is_told(environment: Environment, started: list[Command]) -> None:
    environment.folder.write_text("a file in its place")
    with pytest.raises(DevError, match=r"\.venv could not be made: .*exists"):
        environment.prepare()
    assert started == []


def test_ctrl_c_in_pip_is_an_interrupt_not_a_failure(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_venv(environment)
    monkeypatch.setattr(module, "succeeds", lambda command: True)
    monkeypatch.setattr(module, "run", lambda *_: INTERRUPTED)
    with pytest.raises(KeyboardInterrupt):
        environment.prepare()
    assert environment.stamped() == "installing"


def test_a_second_call_waits_for_the_installation_of_the_first(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\nfrom development.environment import only_one\n"
        "with only_one(pathlib.Path(sys.argv[1])): print('in', flush=True)"
    )
    with only_one(tmp_path):
        command = [sys.executable, "-c", code, str(tmp_path)]
        other = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        time.sleep(0.5)
        assert other.poll() is None
    assert other.communicate(timeout=20)[0] == "in\n"


def test_interpreter_of_an_environment_on_each_system() -> None:
    assert python_in(Path("e"), windows=True) == Path("e/Scripts/python.exe")
    assert python_in(Path("e"), windows=False) == Path("e/bin/python")
