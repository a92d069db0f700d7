"""What all command lines have in common: messages of one short line, and how much a command takes on."""

from __future__ import annotations

import argparse
from typing import NoReturn

import torch

from ..errors import SettingError, one_line, require

# The mini model's runs: more steps than the thousandths in which noise levels are told, or some minutes of video.
STEPS, CHUNKS = 1000, 200
SAMPLES = 1024  # videos that one batch holds: 4 chunks of them take 3 GB
COUNTED = 20_000  # steps of all chunks that the cost command goes through; the longest published run has 640
NAME = 100  # characters


def require_device(field: str, name: str) -> torch.device:
    """The torch device called so; SettingError when this machine or this torch has none."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SettingError(field, name, "cpu, or a device that this machine and this torch have") from error
    require(device.type != "meta", field, name, "a device that computes")
    return device


class Parser(argparse.ArgumentParser):
    """argparse repeats what it cannot use; this one repeats the beginning and the end of it."""

    def error(self, message: str) -> NoReturn:
        super().error(one_line(message, 300))
