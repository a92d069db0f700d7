"""Values of the wrong kind in every field of every node, as prompts by hand may hold them: named, never raw."""

from __future__ import annotations

import math
import time

import pytest
import torch
from hostkit import NODES, load, module, prompt

SettingError, shown = (getattr(module("flowcache_core.errors"), name) for name in ("SettingError", "shown"))
LOOP: list = []
LOOP.append(LOOP)
VALUES = (
    None, True, -1, 0, 1, 7, 2**31, 2**70, 10**400, 0.5, -0.5, math.nan, math.inf, 1e308, "", "x", "custom", "none",
    "0, 1, 2", "0 1 99999999999999999999", "٣", "-1", "x" * 10_000, "\ud800", "a\0b", "../../x", "\x1b[31m", b"x",
    [], [1], ["1", 0], LOOP, {}, {"preset": 3}, {"method": "recent"}, {"plan": "blockwise"}, {1: 2}, torch.zeros(2),
)  # fmt: skip
LINKS = {"MODEL": load, "CONDITIONING": prompt}
# Their inputs are files, encoders or big models: tests of their own.
SKIPPED = {"FlowCacheMiniModel", "FlowCacheReport", "FlowCacheMagiPrompt", "FlowCacheLoadMagiVAE"}


def default(one):
    """What the frontend would send for an input that nobody touched; None for a link that is optional."""
    kind = one.get_io_type()
    if kind in LINKS:
        return LINKS[kind]()
    if kind == "COMFY_DYNAMICCOMBO_V3":
        chosen = one.options[0]
        return {one.id: chosen.key, **{inner.id: default(inner) for inner in chosen.inputs}}
    if getattr(one, "default", None) is not None:
        return one.default
    options = getattr(one, "options", None)
    return options[0] if options else ("" if kind == "STRING" else None)


def choices(one, given):
    """Every place of an input: itself, and the fields of what is chosen in it."""
    yield lambda value: value
    if isinstance(given, dict) and one.get_io_type() == "COMFY_DYNAMICCOMBO_V3":
        for option in one.options:
            whole = {one.id: option.key, **{inner.id: default(inner) for inner in option.inputs}}
            for field in whole:
                yield lambda value, field=field, whole=whole: {**whole, field: value}
                yield lambda value, field=field, whole=whole: {k: v for k, v in whole.items() if k != field}


@pytest.mark.parametrize("name", sorted(set(NODES) - SKIPPED))
def test_every_field(name):
    kind, wrong, count = NODES[name], [], 0
    inputs = [one for one in kind.define_schema().inputs if one.get_io_type() not in ("VAE", "LATENT")]
    given = {one.id: default(one) for one in inputs}
    for one in inputs:
        for place in choices(one, given[one.id]):
            for value in VALUES:
                changed = {**given, one.id: place(value)}
                begun, count = time.process_time(), count + 1
                try:
                    kind.execute(**changed)
                except SettingError as error:
                    if len(str(error)) > 2600 or not str(error).isprintable():
                        wrong.append(f"{one.id}: {len(str(error))} characters")
                except Exception as error:
                    wrong.append(f"{one.id} {shown(changed[one.id], 200)}: {type(error).__name__}: {str(error)[:100]}")
                if time.process_time() - begun > 10:
                    wrong.append(f"{one.id}: more than ten seconds")
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(list(dict.fromkeys(wrong))[:25])
