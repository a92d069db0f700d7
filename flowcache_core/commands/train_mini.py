"""``train-mini``: of the mini model, with ``--scenes`` of mini scenes, with ``--recall`` of the recall model."""

from __future__ import annotations

from ..errors import require
from ..mini.train import main as train
from ..mini.train import mini_training
from ..mini_recall.recipe import recall_training
from ..mini_scenes.recipe import scenes_training


def main(argv: list[str]) -> int:
    """Entry of the command; returns the exit code."""
    require(not {"--scenes", "--recall"} <= {*argv}, "recall", "--scenes --recall", "one of them")
    training = scenes_training if "--scenes" in argv else recall_training if "--recall" in argv else mini_training
    return train(argv, training())
