"""Cleaning of prompts: what the DeepFloyd code with ftfy 6.3 and BeautifulSoup 4 makes of the same text."""

from __future__ import annotations

import pytest

from flowcache_core.models.magi.caption_cleaning import clean_caption

CASES = {
    "A Cat, playing the PIANO.": "a cat, playing the piano.",
    "Visit https://example.com/a/b now, www.foo.org/x!": "visit now, !",
    "<b>bold</b> text &amp; more &lt;i&gt;x": "bold text more x",
    "hello @user_1 see image001.jpg and IMG.png": "hello see and",
    "a_b_c_d_e long-hyphen-word-here ok": "a b c d e long hyphen word here ok",
    "“Smart” ‘quotes’ — dash – en": "\"smart\" 'quotes' - dash - en",
    "中文 cat 漢字 dog": "cat dog",
    "#1 item #12345 1234567 codes jc6640 ab12cd 12ab34 x1y2z3": "item codes",
    "free shipping worldwide free download click on me page 12 of 3": "worldwide of 3",
    "1920x1080 video, 4x4 grid": "video, grid",
    "'quoted whole'": "quoted whole",
    '"quoted whole"': "quoted whole",
    "ends with comma,": "ends with comma",
    "a : b . c ... d": "a: b c d",
    "ﬁne ｆｕｌｌ": "fine full",
    "meeting at 10:30 ": "meeting at 10:30",
    "100%25 sure + more": "100% sure more",
    "C'est l’été à Paris; café": "c'est l'été à paris; café",
    "<person> walks by <3 hearts < 5": "person walks by <3 hearts < 5",
    "192.168.1.1 address": "address",
    "it's a dog's life!! ''' \"\"\" x": "it's a dog's life!! \" \" x",
    "": "",
    "   ": "",
    ".hidden": "",
    "\\n newline \n real": "newline real",
    "emoji 😀 cat": "emoji 😀 cat",
    "a/b/c and (parens) [br] {c} * ~ |": "a b c and parens br c",
    "test<br>line<script>x=1</script>end": "testlineend",
    "&quot;hi&quot;": "hi",
    "x²+½ ¿que? ¡hola!": "x² que? hola!",
    "3.5x4.2 meters; 2×3": "3 2 meters;",
    "co.it foo.it bar": "bar",
    "A man's face. The camera pans left.It zooms": "a man's face. the camera pans zooms",
    "wrongly decoded is left: café": "wrongly decoded is left: café",
}


@pytest.mark.parametrize("text", CASES)
def test_same_as_the_original(text):
    assert clean_caption(text) == CASES[text]
