"""``train-mini``: of the mini model, or with ``--scenes`` of mini scenes."""

from __future__ import annotations

from ..mini.train import main as train
from ..mini.train import mini_training
from ..mini_scenes.recipe import scenes_training


def main(argv: list[str]) -> int:
    """Entry of the command; returns the exit code."""
    return train(argv, scenes_training() if "--scenes" in argv else mini_training())
