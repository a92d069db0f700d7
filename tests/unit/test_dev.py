"""dev.py: its commands, the processes behind them, and what it says when one fails."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import dev
import flowcache_core.__main__
from benchmarks.__main__ import BENCHMARKS
from development import processes

Command = list[str]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Command]:
    """Commands that dev.py would have become."""
    commands: list[Command] = []

    def become(command: Sequence[str | Path]) -> int:
        commands.append([str(part) for part in command])
        return 0

    monkeypatch.setattr(dev, "become", become)
    return commands


def test_no_venv_names_what_the_interpreter_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dev.current_python("test") == Path(sys.executable)
    monkeypatch.setattr(dev.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(dev.DevError, match=r"has no ruff and no mypy.*-m pip install -r requirements-dev\.txt"):
        dev.current_python("lint")


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
    assert processes.run([sys.executable, "-c", "raise SystemExit(7)"], tmp_path) == 7


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_death_by_signal_is_128_plus_its_number(tmp_path: Path) -> None:
    assert processes.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], tmp_path) == 137


def test_ctrl_c_waits_for_the_child_and_returns_130(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    children = []

    class Interrupted(subprocess.Popen):  # type: ignore[type-arg]
        def wait(self, timeout: float | None = None) -> int:
            if self not in children:
                children.append(self)
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(processes.subprocess, "Popen", Interrupted)
    marker = tmp_path / "finished"
    code = f"import time, pathlib; time.sleep(0.3); pathlib.Path({str(marker)!r}).touch()"
    assert processes.run([sys.executable, "-c", code], tmp_path) == 130
    assert marker.exists() and children[0].returncode == 0


@pytest.mark.skipif(os.name == "nt", reason="there it is a child")
def test_a_command_is_this_very_process(tmp_path: Path) -> None:
    """Whoever kills dev.py kills the work. The file's text is what it says where it runs."""
    shutil.copy(dev.ROOT / "dev.py", tmp_path)
    shutil.copytree(dev.ROOT / "development", tmp_path / "development")
    (tmp_path / "benchmarks.py").write_text("import os, sys, time\nprint(os.getpid(), os.getcwd(), sys.argv[1:])\n")
    command = [sys.executable, str(tmp_path / "dev.py"), "bench", "curve", "--no-venv"]
    asked = subprocess.Popen(command, cwd="/", stdout=subprocess.PIPE, text=True)
    assert asked.communicate()[0] == f"{asked.pid} {tmp_path} ['curve']\n" and asked.returncode == 0


def test_errors_are_one_line_without_traceback() -> None:
    result = subprocess.run([sys.executable, "dev.py", "nonsense"], cwd=dev.ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.startswith("dev.py: command: got 'nonsense'") and len(result.stderr.splitlines()) == 1
