"""What the registry, the workflows and a fresh machine read: versions agree, pins are exact, help pages are kept."""

from __future__ import annotations

import re
from pathlib import Path

import flowcache_core

ROOT = Path(__file__).parents[2]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_version_is_the_same_everywhere() -> None:
    found = re.search(r'^version = "(\d+\.\d+\.\d+)"$', text("pyproject.toml"), re.MULTILINE)
    newest = re.search(r"^## \[(.+?)\]", text("CHANGELOG.md"), re.MULTILINE)
    assert found and newest
    assert found[1] == flowcache_core.__version__ == newest[1]


def test_development_requirements_are_exact_and_cover_every_supported_python() -> None:
    newer, older = set(), set()
    for line in text("requirements-dev.txt").splitlines():
        if line and not line.startswith("#"):
            pin = re.fullmatch(r'([a-z]+)==[\d.]+(?:; python_version (>=|<) "3\.11")?', line)
            assert pin, line
            newer |= {pin[1]} if pin[2] != "<" else set()
            older |= {pin[1]} if pin[2] != ">=" else set()
    assert newer == older
    assert {"torch", "numpy", "safetensors", "einops", "pytest", "ruff", "mypy"} <= newer
    assert re.search(r"^torch==2\.13\.0$", text("requirements-dev.txt"), re.MULTILINE)


def test_registry_id_and_archive() -> None:
    name = re.search(r'^name = "(.+)"$', text("pyproject.toml"), re.MULTILINE)
    assert name and "comfyui" not in name[1].lower() and not name[1][0].isdigit()
    patterns = [line for line in text(".comfyignore").splitlines() if line and not line.startswith("#")]
    assert all(pattern.startswith("/") for pattern in patterns), "unanchored patterns drop web/docs"
    assert not {"/web/", "/flowcache_core/", "/nodes/", "/workflows/", "/locales/"} & set(patterns)
