"""Files and folders that are whole or absent: several writers, killed writers, places that cannot be written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flowcache_core import files
from flowcache_core.errors import SettingError
from flowcache_core.files import require_file, require_folder, whole_file, whole_folder, write_json

ROOT = Path(__file__).parents[2]
POSIX = pytest.mark.skipif(os.name == "nt", reason="processes and limits of POSIX")


def python(code: str, *arguments: object, wait: bool = True) -> Any:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if wait:
        child.communicate(timeout=120)
    return child


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- two writers of one name ----------------------------------------------------------------------------------------


def test_two_writers_of_one_name_never_share_a_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    with whole_file(target) as first, whole_file(target) as second:
        assert first != second and first.parent == second.parent == tmp_path
        first.write_text("first")
        second.write_text("second, longer")
        assert not target.exists()
    assert target.read_text() == "first" and names(tmp_path) == ["a.txt"]  # the outer one ended last


def test_processes_that_write_one_name_leave_a_whole_file_at_every_moment(tmp_path: Path) -> None:
    code = """if True:
        import sys
        from pathlib import Path
        from flowcache_core.files import write_json
        for i in range(60):
            write_json(Path(sys.argv[1]), {"writer": sys.argv[2], "values": [int(sys.argv[2])] * 3000})
    """
    target = tmp_path / "a.json"
    children = [python(code, target, number, wait=False) for number in (1, 2)]
    seen = 0
    while any(child.poll() is None for child in children) or not seen:
        if target.exists():
            read = json.loads(target.read_text())  # half a file would not parse
            assert set(read["values"]) == {int(read["writer"])} and len(read["values"]) == 3000
            seen += 1
    assert [child.wait() for child in children] == [0, 0]
    assert names(tmp_path) == ["a.json"]


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_json(tmp_path / "a.json", {})
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_numbers_that_json_cannot_hold_leave_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"new": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}


# -- killed writers -------------------------------------------------------------------------------------------------


@POSIX
@pytest.mark.parametrize("kind", ["whole_file", "whole_folder"])
def test_what_a_killed_writer_left_is_removed_by_the_next_one(tmp_path: Path, kind: str) -> None:
    code = f"""if True:
        import os, signal, sys
        from pathlib import Path
        from flowcache_core.files import {kind}
        target = Path(sys.argv[1])
        with {kind}(target / "a.txt" if {kind!r} == "whole_file" else target) as part:
            (part / "half" if part.is_dir() else part).write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    python(code, tmp_path)
    assert len(names(tmp_path)) == 1 and names(tmp_path)[0].endswith(".part")
    write_json(tmp_path / "b.json", {})
    assert names(tmp_path) == ["b.json"]


@POSIX
def test_the_part_of_a_writer_at_work_stays(tmp_path: Path) -> None:
    code = """if True:
        import sys
        from pathlib import Path
        from flowcache_core.files import whole_file
        with whole_file(Path(sys.argv[1]) / "slow.txt") as part:
            part.write_text("whole in the end")
            print("ready", flush=True)
            sys.stdin.read()
    """
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        write_json(tmp_path / "quick.json", {})
        child.communicate("", timeout=60)
    assert names(tmp_path) == ["quick.json", "slow.txt"] and (tmp_path / "slow.txt").read_text() == "whole in the end"


def test_parts_of_other_machines_go_by_their_age(tmp_path: Path) -> None:
    old, new = (tmp_path / f".flowcache-00000000-1-{name}.part" for name in ("old", "new"))
    mine = tmp_path / ".flowcache-notes.part"  # not named as ours are: stays
    for path in (old, new, mine):
        path.write_text("half")
    week = time.time() - 7 * 24 * 3600
    os.utime(old, (week, week))
    write_json(tmp_path / "a.json", {})
    assert names(tmp_path) == sorted([new.name, mine.name, "a.json"])


# -- folders --------------------------------------------------------------------------------------------------------


def fill(folder: Path, text: str) -> None:
    with whole_folder(folder) as part:
        for name in ("a", "b", "c"):
            (part / name).write_text(text)


def texts(folder: Path) -> list[str]:
    return [(folder / name).read_text() for name in ("a", "b", "c")]


def test_a_folder_is_replaced_as_a_whole_and_what_else_is_in_it_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    for text in ("old", "new"):
        fill(tmp_path, text)
        assert texts(tmp_path) == [text] * 3
    assert names(tmp_path) == ["a", "b", "c", "mine"] and (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize("after", range(6))
@pytest.mark.parametrize("began", ["empty", "full"])
def test_a_failure_at_any_move_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, began: str
) -> None:
    if began == "full":
        fill(tmp_path, "old")
    before, moves, replace = names(tmp_path), [], os.replace

    def failing(source: Path, target: Path) -> None:
        moves.append(source)
        if len(moves) == after + 1:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", failing)
    with pytest.raises(SettingError, match="the disk is full"):
        fill(tmp_path, "new")
    assert names(tmp_path) == before
    assert began == "empty" or texts(tmp_path) == ["old"] * 3


def test_an_interrupt_while_a_folder_is_made_leaves_the_old_one(tmp_path: Path) -> None:
    fill(tmp_path, "old")
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path) as part:
        (part / "a").write_text("new")
        raise KeyboardInterrupt
    assert texts(tmp_path) == ["old"] * 3 and names(tmp_path) == ["a", "b", "c"]


def test_a_folder_in_the_place_of_a_file_is_never_moved(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").write_text("mine")
    with pytest.raises(SettingError, match="a file, not a folder"):
        fill(tmp_path, "new")
    assert names(tmp_path) == ["b"] and (tmp_path / "b" / "mine").read_text() == "mine"


def test_processes_that_fill_one_folder_do_not_mix_their_files(tmp_path: Path) -> None:
    code = """if True:
        import sys
        from pathlib import Path
        from flowcache_core.files import whole_folder
        for i in range(40):
            with whole_folder(Path(sys.argv[1])) as part:
                for name in "abcdefgh":
                    (part / name).write_text(sys.argv[2])
    """
    children = [python(code, tmp_path, number, wait=False) for number in (1, 2, 3)]
    assert [child.wait(timeout=120) for child in children] == [0, 0, 0]
    assert names(tmp_path) == list("abcdefgh")
    assert len({(tmp_path / name).read_text() for name in "abcdefgh"}) == 1


# -- places that cannot be written ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "accepted"),
    [
        ("folder", "a file, not a folder"),
        ("file/a.json", "a file is in its place"),
        ("file/deeper/a.json", "a file is in its place"),
        ("x" * 300, "can be written"),
        ("a\0b", "can be written"),
    ],
)
def test_places_that_cannot_be_written_are_named(tmp_path: Path, place: str, accepted: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SettingError, match=accepted) as caught:
        require_file(tmp_path / place, "picture")
    assert caught.value.field == "picture"
    assert names(tmp_path) == ["file", "folder"] and (tmp_path / "file").read_text() == "mine"


@POSIX
def test_devices_and_pipes_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (Path("/dev/null"), tmp_path / "pipe"):
        with pytest.raises(SettingError, match="not of a device or a pipe"):
            require_file(place)


def test_a_file_or_folder_that_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("old")
    require_file(tmp_path / "a.json")
    require_file(tmp_path / "new" / "b.json")
    require_folder(tmp_path / "other", names=["a", "b"])
    assert (tmp_path / "a.json").read_text() == "old"
    assert names(tmp_path) == ["a.json", "new", "other"] and names(tmp_path / "new") == names(tmp_path / "other") == []


def test_too_little_room_is_said_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="work: got .*MB of free space"):
        require_folder(tmp_path, "work", room=2**62)
    require_folder(tmp_path, "work", room=1)


@POSIX
def test_a_file_that_outgrows_its_limit_is_one_plain_error_and_no_file(tmp_path: Path) -> None:
    """A real refusal of the system in the middle of writing, through every way in which files are written here."""
    code = """if True:
        import resource, signal, sys
        from pathlib import Path
        import torch
        from flowcache_core.errors import SettingError
        from flowcache_core.files import write_json
        from flowcache_core.mini import checkpoint, train
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        folder = Path(sys.argv[1])
        model = torch.nn.Linear(400, 400)
        ways = {
            "out": lambda: write_json(folder / "a.json", {"values": list(range(100_000))}),
            "work": lambda: checkpoint.save(folder / "a.pt", {"model": model}, checkpoint.Stand()),
            "weights": lambda: train.write(folder / "a.safetensors", model, torch.float32, {}),
        }
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        for way in ways.values():
            try:
                way()
            except SettingError as error:
                sys.stdout.write(f"{error.field}\\n")
    """
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.split()) == (0, ["out", "work", "out"]), done.stderr
    assert names(tmp_path) == []
