"""Sentences in the language of the page: what the core and the nodes say is English, and translated where it leaves.

The table (``web/sentences.zh.json``, which the page reads too) has a sentence with ``{}`` for what is put in, and the
same in Chinese, where ``{1}`` is the second of them if their order is another. What is put in is translated likewise.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

from .page import Page

PACK = Path(__file__).resolve().parents[3]
SENTENCES, NAMES = PACK / "web" / "sentences.zh.json", PACK / "locales"
ERROR = re.compile(r"(.*?): got (.*), accepted: (.*)", re.DOTALL)
HOLE = re.compile(r"\{(\d?)\}")
QUOTES = "'\""


def said(text: str) -> str:
    """``text`` for whoever reads the page, line by line; as it is where the table has no such sentence."""
    if not Page.now().language.startswith("zh"):
        return text
    return "\n".join(chinese(line) for line in text.split("\n"))


def chinese(line: str) -> str:
    if (error := ERROR.fullmatch(line)) is not None:
        field, found, accepted = error.groups()
        return f"{place(field)}：收到 {quoted(found)}，可用：{chinese(accepted)}"
    for pattern, pieces in table():
        if (found_in := pattern.fullmatch(line)) is not None:
            inside = [chinese(part) for part in found_in.groups()]
            return "".join(piece if isinstance(piece, str) else inside[piece] for piece in pieces)
    parts = line.split("; ")
    if len(parts) == 1:
        return line
    turned = [chinese(part) for part in parts]
    return line if turned == parts else "；".join(turned)


def quoted(found: str) -> str:
    """A value in quotes keeps them."""
    if len(found) > 1 and found[0] in QUOTES and found[-1] == found[0]:
        return f"{found[0]}{chinese(found[1:-1])}{found[0]}"
    return chinese(found)


@cache
def table() -> tuple[tuple[re.Pattern[str], tuple[str | int, ...]], ...]:
    """(pattern of a sentence, pieces of the Chinese one and numbers of what is put in), the most definite one first."""
    rows: dict[str, str] = json.loads(SENTENCES.read_text(encoding="utf-8"))
    ordered = sorted(rows.items(), key=lambda row: -len(HOLE.sub("", row[0])))
    return tuple((pattern_of(english), pieces_of(said_so)) for english, said_so in ordered)


def pattern_of(english: str) -> re.Pattern[str]:
    return re.compile("(.+?)".join(re.escape(piece) for piece in english.split("{}")))


def pieces_of(text: str) -> tuple[str | int, ...]:
    pieces: list[str | int] = []
    at = count = 0
    for hole in HOLE.finditer(text):
        pieces += [text[at : hole.start()], int(hole[1]) if hole[1] else count]
        at, count = hole.end(), count + 1
    return (*pieces, text[at:])


def place(field: str) -> str:
    """Such as "KV Cache Compressor, pool_kernel" by the names that the nodes have in the page."""
    node, _, name = field.rpartition(", ")
    kinds, fields = names()
    first = re.split(r"\W", name, maxsplit=1)[0]
    return (f"{kinds.get(node, node)}，" if node else "") + fields.get((node, first), first) + name[len(first) :]


@cache
def names() -> tuple[dict[str, str], dict[tuple[str, str], str]]:
    """English display name -> Chinese; (English display name, field) -> Chinese name of the field."""
    english, texts = (
        json.loads((NAMES / language / "nodeDefs.json").read_text(encoding="utf-8")) for language in ("en", "zh")
    )
    kinds, fields = {}, {}
    for kind, one in english.items():
        kinds[one["display_name"]] = texts[kind]["display_name"]
        for key, entry in one["inputs"].items():
            fields[one["display_name"], entry["name"]] = texts[kind]["inputs"][key]["name"]
    return kinds, fields
