"""Cleaning of prompts as the T5 models of the DeepFloyd line were trained on them, MAGI-1 among them.

The order of the rules matters and is theirs; so are the rules, oddities included: text is lower-cased, addresses, file
names, long numbers, product codes and CJK ideographs vanish. Two differences from the original, which uses the
libraries ftfy and BeautifulSoup: wrongly decoded text ("cafÃ©") is left as it is, and markup is removed by Python's
own parser.
"""

from __future__ import annotations

import html
import re
import unicodedata
from html.parser import HTMLParser
from urllib.parse import unquote_plus

from ...errors import Found, require

LONGEST = 5000  # characters; the encoder sees 800 tokens, and some rules take time by the square of the length
PASSES = 2  # the original cleans twice, and the second pass does find something
MANY_JOINERS = 3

_ADDRESS = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_FILE_TYPE = r"(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"
_DASHES = (
    r"\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40"
    r"\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d"
)

Rules = tuple[tuple[re.Pattern[str], str], ...]


def _rules(*pairs: tuple[str, str]) -> Rules:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


_ADDRESSES = _rules(
    ("<person>", "person"),
    (rf"\b(?:https?:(?:/{{1,3}}|[a-zA-Z0-9%])|{_ADDRESS})", ""),
    (rf"\b(?:www:(?:/{{1,3}}|[a-zA-Z0-9%])|{_ADDRESS})", ""),
)
_SIGNS = _rules(
    (r"@[\w\d]+\b", ""),
    (r"[\u31c0-\u4dff\u4e00-\u9fff]+", ""),  # strokes to ideographs
    (rf"[{_DASHES}]+", "-"),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    ("&quot;?", ""),
    ("&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"[\S]+\.{_FILE_TYPE}", ""),
    (r"[\"']{2,}", '"'),
    (r"[.]{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
_JOINERS = re.compile("[-_]")
_SHOP_TALK = _rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b{_FILE_TYPE}(\simage[s]?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)
_REPAIRS = _rules(  # the part of ftfy.fix_text that needs no guess about encodings
    (r"\x1b\[\d*(?:;\d+)*m", ""),
    ("[\u02bc\u2018-\u201b]", "'"),
    ("[\u201c-\u201f]", '"'),
    ("\r\n|\r|\u2028|\u2029|\x85", "\n"),
    ("[\x00-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]", ""),
)
_COMPATIBILITY = re.compile("[\ufb00-\ufb06\uff01-\uff5e\uffe0-\uffee\u3000]")  # ligatures, full-width forms


def clean_caption(text: str) -> str:
    """The prompt as the text encoder should get it; may be empty. Cleaning a cleaned prompt may change it again.

    SettingError for a prompt of more than ``LONGEST`` characters.
    """
    length = Found(f"{len(text)} characters")
    require(len(text) <= LONGEST, "text", length, f"at most {LONGEST}: the encoder reads about the first 4,000")
    for _ in range(PASSES):
        text = _clean_once(text)
    return text


def _clean_once(text: str) -> str:
    text = _apply(_ADDRESSES, unquote_plus(text).strip().lower())
    text = _apply(_SIGNS, _without_markup(text))
    if len(_JOINERS.findall(text)) > MANY_JOINERS:
        text = _JOINERS.sub(" ", text)
    text = html.unescape(html.unescape(_repaired(text))).strip()
    return _apply(_SHOP_TALK, text).strip()


def _apply(rules: Rules, text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def _repaired(text: str) -> str:
    text = html.unescape(text) if "<" not in text else text
    text = _COMPATIBILITY.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    return unicodedata.normalize("NFC", _apply(_REPAIRS, text))


class _Text(HTMLParser):
    """Collects what is not a tag, a comment, a script or a style."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.hidden += tag in ("script", "style", "template")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= self.hidden > 0 and tag in ("script", "style", "template")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data)


def _without_markup(text: str) -> str:
    parser = _Text()
    try:
        parser.feed(text)
        parser.close()
    except AssertionError:  # Python's parser gives up on some "<![" that open nothing
        return text
    return "".join(parser.parts)
