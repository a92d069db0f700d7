"""Where ComfyUI is, which Python runs it, and whether a suite of tests can run inside it."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from .environment import python_in
from .processes import DevError, succeeds

HOW_TO_GET_COMFYUI = "pip install comfy-cli && comfy install   (or set COMFYUI_DIR to an installation)"


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
