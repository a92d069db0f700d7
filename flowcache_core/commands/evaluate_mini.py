"""``evaluate-mini``: of the mini model, or with ``--scenes`` of mini scenes."""

from __future__ import annotations

from ..mini.evaluate import main as evaluate
from ..mini_scenes.evaluate import main as evaluate_scenes


def main(argv: list[str]) -> int:
    """Entry of the command; returns the exit code."""
    return (evaluate_scenes if "--scenes" in argv else evaluate)(argv)
