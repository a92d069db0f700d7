"""Messages are one short line whatever the value, and numbers that no float holds are refused by name."""

from __future__ import annotations

import math

import pytest
import torch

from flowcache_core.errors import Found, SettingError, listed, require_count, require_finite, shown

LOOP: list[object] = []
LOOP.append(LOOP)
DEEP: list[object] = []
for _ in range(20_000):
    DEEP = [DEEP]


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no")


VALUES: dict[str, object] = {
    "long": "x" * 10_000, "ansi": "\x1b[31m" * 5000, "odd signs": "\ud800\n\r\t" * 40, "bytes": b"\0" * 10_000,
    "400 digits": 10**400, "5000 digits": -(10**5000), "2**70": 2**70, "loop": LOOP, "deep": DEEP,
    "mapping": {"a" * 5000: "b" * 5000}, "list": list(range(10**6)), "tensor": torch.zeros(1000, 1000),
    "hostile": Hostile(), "nan": math.nan, "set": set("abcdefgh"),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_a_message_is_one_short_line(name: str) -> None:
    error = SettingError("field", VALUES[name], "something else")
    assert len(str(error)) < 130 and str(error).isprintable()
    assert str(error).startswith("field: got ") and str(error).endswith(", accepted: something else")
    outer = str(error.within("outer"))
    assert outer[:14] in ("outer: got 'fi", 'outer: got "fi') and len(outer) < 170


def test_short_values_are_repeated_as_they_are() -> None:
    assert shown("a b") == "'a b'" and shown(3) == "3" and shown((1, 2)) == "(1, 2)" and shown(None) == "None"
    assert str(SettingError("f", "v", "w")) == "f: got 'v', accepted: w"


def test_both_ends_of_a_long_value_are_shown() -> None:
    text = shown("begin" + "-" * 500 + "end.safetensors")
    assert text.startswith("'begin---") and text.endswith("end.safetensors'") and len(text) <= 82


def test_names_and_limits_of_fields_and_accepted() -> None:
    error = SettingError("k" * 10_000, Found("ours " * 30), "a" * 10_000)
    assert "ours " * 30 in str(error) and len(str(error)) < 3000
    assert listed(["a" * 1000, "b\n", *"cdefg"]).endswith("aaa, b\\n, c, d and 3 more")


@pytest.mark.parametrize("value", [10**400, -(10**400), math.inf, math.nan, True, None, "1", [1]])
def test_require_finite(value: object) -> None:
    with pytest.raises(SettingError, match="^x: got "):
        require_finite("x", value, minimum=-math.inf)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [2**31, 2**70, 10**400, 1.0, True, None, "1"])
def test_require_count(value: object) -> None:
    with pytest.raises(SettingError, match="accepted: a whole number >= 1"):
        require_count("x", value, minimum=1)  # type: ignore[arg-type]
    require_count("x", 2**64 - 1, minimum=0, maximum=2**64 - 1)
