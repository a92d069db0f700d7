"""``evaluate-mini``: of the mini model, with ``--scenes`` of mini scenes, with ``--recall`` what a video remembers."""

from __future__ import annotations

from ..errors import require
from ..mini.evaluate import main as evaluate
from ..mini_recall.evaluate import main as evaluate_recall
from ..mini_scenes.evaluate import main as evaluate_scenes


def main(argv: list[str]) -> int:
    """Entry of the command; returns the exit code."""
    one = not {"--scenes", "--recall"} <= {*argv}
    require(one, "recall", "--scenes --recall", "one of them: recall has a model of its own")
    return (evaluate_scenes if "--scenes" in argv else evaluate_recall if "--recall" in argv else evaluate)(argv)
