"""The three forms of a report. None of them may cost the video that it is about: what fails becomes a sentence."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from ....flowcache_core.report.document import to_json
from ....flowcache_core.report.text import summary
from ..run.records import NoRecordError
from ..run.settings import expectation, slot_of
from .picture import draw, draw_sentence

Part = TypeVar("Part")


@dataclass
class RunReport:
    """lines: of the text; sentences about parts that could not be made come last."""

    lines: list[str] = field(default_factory=list)
    picture: Tensor = field(init=False)
    document: str = field(init=False)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @classmethod
    def of(cls, model: Any, latent: Any) -> RunReport:
        """On the run of ``model`` that made ``latent``; one sentence when there is none. Raises nothing."""
        report = cls()
        found = report.tried("record", lambda: slot_of(model).report_on(latent["samples"]), lambda _: None)
        if found is None:
            (sentence,) = report.lines
            report.picture = report.tried("picture", lambda: draw_sentence(sentence), blank)
            report.document = json.dumps({"notes": [sentence]})
            return report
        record, note = found
        report.lines += report.tried("text", lambda: summary(record).splitlines(), lambda _: [])
        expected = report.tried("expectation", lambda: expectation(model, record), lambda _: None)
        report.lines += [line for line in (expected, note) if line]
        report.picture = report.tried("picture", lambda: draw(record), blank)
        report.document = report.tried(
            "JSON", lambda: json.dumps(to_json(record), allow_nan=False), lambda why: json.dumps({"notes": [why]})
        )
        return report

    def tried(self, part: str, make: Callable[[], Part], instead: Callable[[str], Part]) -> Part:
        """``make()``; if it fails, ``instead`` of the sentence that says why, which also joins the text."""
        try:
            return make()
        except NoRecordError as error:
            sentence = str(error)
        except Exception as error:
            logging.warning("FlowCache Report: no %s", part, exc_info=True)
            reason = next(iter(str(error).splitlines()), "")
            sentence = f"No {part} in this report: {type(error).__name__}: {reason}".rstrip(": ")
        self.lines.append(sentence)
        return instead(sentence)


def blank(_: str) -> Tensor:
    """``[1, H, W, 3]``, white: what a picture is when nothing can be drawn."""
    return torch.ones(1, 64, 64, 3)
