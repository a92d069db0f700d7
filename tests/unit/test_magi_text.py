"""MAGI-1's text side: which special tokens stand where, masks, the null caption, the token table's file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from flowcache_core.errors import SettingError
from flowcache_core.models.magi.text import (
    SpecialTokens,
    TokenSwitches,
    chunk_captions,
    fit_caption,
    load_special_tokens,
    null_caption,
)

DIM, LENGTH = 4, 12
CAPTION, LOGO, OTHER = 1000.0, 2000.0, 100.0  # a token's value says which it is: OTHER + row


@pytest.fixture
def tokens() -> SpecialTokens:
    rows = OTHER + torch.arange(100.0)
    return SpecialTokens(
        torch.full((1, DIM), CAPTION), torch.full((1, DIM), LOGO), rows[:, None].expand(100, DIM).clone()
    )


def prompt(count: int = 3, padded: int = LENGTH) -> tuple[Tensor, Tensor]:
    """Rows 1, 2, ... and a mask that shows the first ``count``."""
    caption = torch.arange(1.0, padded + 1)[:, None].expand(padded, DIM)
    return caption, (torch.arange(padded) < count).float()


def first_column(captions: Tensor) -> list[list[float]]:
    return captions[..., 0].tolist()


def test_default_tokens_stand_before_the_caption(tokens):
    captions, masks = chunk_captions(*prompt(), 2, tokens, dim=DIM, length=LENGTH)
    # DURATION, HQ, caption; of two chunks the first has two left (row 8), the last one (row 7)
    assert first_column(captions[:, :6]) == [[108, 101, 1, 2, 3, 4], [107, 101, 1, 2, 3, 4]]
    assert captions.shape == (2, LENGTH, DIM)
    assert masks.tolist() == [[1] * 5 + [0] * 7] * 2


def test_all_tokens_in_order(tokens):
    switches = TokenSwitches(static=True, dynamic=True, borders=True, hq=True, three_d=True, two_d_anime=True)
    captions, masks = chunk_captions(*prompt(), 1, tokens, switches, dim=DIM, length=LENGTH)
    assert first_column(captions)[0][:9] == [107, 116, 115, 101, 104, 103, 102, 1, 2]
    assert masks[0].sum() == 7 + 3


def test_what_passes_the_length_is_cut(tokens):
    captions, masks = chunk_captions(*prompt(LENGTH), 1, tokens, dim=DIM, length=LENGTH)
    assert first_column(captions)[0] == [107, 101, *range(1, LENGTH - 1)]
    assert masks[0].tolist() == [1] * LENGTH


def test_durations_end_at_eight(tokens):
    captions, _ = chunk_captions(*prompt(), 11, tokens, TokenSwitches(hq=False), dim=DIM, length=LENGTH)
    assert captions[:, 0, 0].tolist() == [114, 114, 114, 114, 113, 112, 111, 110, 109, 108, 107]


def test_without_a_table():
    captions, masks = chunk_captions(*prompt(), 3, dim=DIM, length=LENGTH)
    assert first_column(captions) == [list(range(1, LENGTH + 1))] * 3
    with pytest.raises(SettingError, match=r"special tokens.*special_tokens\.npz, or all switches off"):
        chunk_captions(*prompt(), 3, None, TokenSwitches(), dim=DIM)


def test_another_text_encoder_is_refused():
    with pytest.raises(SettingError, match=r"caption.*\(7, 2048\).*\[n, 4096\], as T5 v1.1 XXL"):
        chunk_captions(torch.zeros(7, 2048), torch.ones(7), 1)


def test_short_and_long_captions_are_fitted():
    caption, mask = fit_caption(torch.ones(2, DIM), None, 4)
    assert first_column(caption) == [1, 1, 0, 0] and mask.tolist() == [1, 1, 0, 0]
    caption, mask = fit_caption(*prompt(5), 4)
    assert first_column(caption) == [1, 2, 3, 4] and mask.tolist() == [1, 1, 1, 1]


def test_null_caption(tokens):
    embedding = torch.arange(60.0)[:, None].expand(60, DIM)
    caption, mask = null_caption(embedding)
    assert torch.equal(caption, embedding) and mask.tolist() == [1] * 50 + [0] * 10
    caption, mask = null_caption(embedding, tokens)
    assert first_column(caption) == [104, 100, LOGO, CAPTION, *range(56)]
    assert mask.tolist() == [1] * 50 + [0] * 10


# --- the file ----------------------------------------------------------------------------------------------------


def table(**changes) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    sizes = {"caption_token": 1, "logo_token": 1, "other_tokens": 100}
    arrays = {name: draw.standard_normal((count, 8)) for name, count in sizes.items()}
    return {name: array for name, array in (arrays | changes).items() if array is not None}


def test_the_table_is_read_at_fp16_precision(tmp_path):
    arrays = table()
    np.savez(tmp_path / "special_tokens.npz", **arrays)
    tokens = load_special_tokens(tmp_path / "special_tokens.npz", dim=8)
    assert tokens.other.dtype == torch.float32 and tokens.logo.shape == (1, 8)
    assert np.array_equal(tokens.row(15).numpy(), arrays["other_tokens"][15:16].astype(np.float16).astype(np.float32))
    assert np.array_equal(tokens.caption.numpy(), arrays["caption_token"].astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(
    "arrays, found",
    [
        (table(other_tokens=np.zeros((99, 8))), "other_tokens 99 x 8"),
        (table(logo_token=None), "caption_token 1 x 8, other_tokens 100 x 8"),
        (table(caption_token=np.zeros((1, 16))), "caption_token 1 x 16"),
        (table(other_tokens=np.zeros((100, 8), dtype=np.int64)), "other_tokens 100 x 8"),
        ({}, "nothing"),
        ({"caption_token": np.array([{"a": 1}], dtype=object)}, "unreadable"),
    ],
)
def test_other_tables_are_refused(tmp_path, arrays, found):
    path = tmp_path / "special_tokens.npz"
    np.savez(path, **arrays)
    with pytest.raises(SettingError) as caught:
        load_special_tokens(path, dim=8)
    assert found in str(caught.value)
    assert "caption_token 1 x 8, logo_token 1 x 8, other_tokens 100 x 8" in caught.value.accepted


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04broken"])
def test_damaged_files_are_refused(tmp_path, content):
    path = tmp_path / "special_tokens.npz"
    path.write_bytes(content)
    with pytest.raises(SettingError, match="unreadable"):
        load_special_tokens(path)
    with pytest.raises(SettingError, match="unreadable"):
        load_special_tokens(tmp_path / "absent.npz")
