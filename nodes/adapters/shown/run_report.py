"""The forms of a report. None of them may cost the video that it is about: what fails becomes a sentence."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ....flowcache_core.report.document import to_json
from ....flowcache_core.report.lead import Outcome, named
from ....flowcache_core.report.record import RunRecord
from ....flowcache_core.report.text import details, headline, step_map
from ..run.records import NoRecordError, Run
from ..run.settings import slot_of
from .page import Page
from .picture import draw, draw_sentence
from .said import said

Part = TypeVar("Part")


@dataclass
class RunReport:
    """lead: what a person wants to know first. lines: details; sentences about parts that could not be made come last.
    step_map: in characters, for the text that goes on to other nodes; the node itself shows the picture.
    """

    lead: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    step_map: list[str] = field(default_factory=list)
    picture: Tensor = field(init=False)
    document: str = field(init=False)

    @property
    def text(self) -> str:
        return self._joined([*self.step_map, *map(said, self.lines)])

    @property
    def on_node(self) -> str:
        return self._joined([said(line) for line in self.lines])

    def _joined(self, details: list[str]) -> str:
        return "\n".join([*self.lead, *([""] if self.lead and details else []), *details])

    @classmethod
    def of(cls, model: Any, latent: Any, images: Any = None) -> RunReport:
        """On the run of ``model`` that made ``latent``, decoded to ``images``; one sentence when there is none. Raises
        nothing.
        """
        report, page = cls(), Page.now()
        found = report.tried("record", lambda: slot_of(model).report_on(latent["samples"]), lambda _: None)
        if found is None:
            (sentence,) = report.lines
            report.picture = report.tried("picture", lambda: draw_sentence(sentence, page), blank)
            report.document = json.dumps({"notes": [sentence]})
            return report
        run, note = found
        record = run.record
        assert record is not None  # report_on finds runs that left one
        came_to = report.tried("outcome", lambda: outcome(run, record), lambda _: None)
        report.lead = [] if came_to is None else came_to.lines(page.language)
        report.step_map = report.tried("map", lambda: step_map(record).splitlines(), lambda _: [])
        report.lines += report.tried("text", lambda: described(record), lambda _: [])
        expected = report.tried("expectation", lambda: expectation(run), lambda _: None)
        report.lines += [line for line in (expected, note) if line]
        title = (lambda language: "") if came_to is None else came_to.headline
        report.picture = report.tried("picture", lambda: draw(record, title, page, images), blank)
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


def described(record: RunRecord) -> list[str]:
    """Headline without the settings' short name, where values stopped being finite, and details."""
    return [headline(replace(record, tag="")), *([record.fault] if record.fault else []), *details(record)]


def outcome(run: Run, record: RunRecord) -> Outcome:
    """The run in the numbers that its live map ended with."""
    message, source = run.message, run.reuse.source if run.reuse else None
    kv = message.get("kv") or {}
    fault = record.not_finite[0].place if record.not_finite else None
    expected = None if source is None else source.expected_psnr(record.computed_share, record.started)
    return Outcome(
        preset=message["preset"],
        steps=record.started.steps,
        chunks=record.started.chunks - record.started.prefix_chunks,
        done=message["done"],
        total=message["total"],
        computed=message["computed"],
        seconds=record.seconds if record.seconds is not None else message["seconds"],
        saved=message["saved"],
        kv_bytes=kv.get("bytes") or 0,
        whole_bytes=kv.get("whole_bytes") or 0,
        expected=expected,
        measured=source is None or source.measured,
        beside=record.beside_reuse,
        compressor=run.compressor,
        fault=fault,
    )


def expectation(run: Run) -> str | None:
    """Where the run lies on its preset's curve; None for presets without one."""
    source, record = run.reuse.source if run.reuse else None, run.record
    if source is None or record is None:
        return None
    return source.expectation(record.computed_share, record.started, [named([name]) for name in record.beside_reuse])


def blank(_: str) -> Tensor:
    """``[1, H, W, 3]``, white: what a picture is when nothing can be drawn."""
    return torch.ones(1, 64, 64, 3)
