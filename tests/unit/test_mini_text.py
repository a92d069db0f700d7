"""The mini model's language."""

from __future__ import annotations

import pytest
import torch

from flowcache_core.mini.data import random_clips
from flowcache_core.mini.text import TEXT_DIM, TOKENS, VOCABULARY, encode_prompt


def test_prompts_have_one_shape_so_branches_batch() -> None:
    for prompt in ("", "circle", "a red circle moving right"):
        assert encode_prompt(prompt).shape == (1, TOKENS, TEXT_DIM)
        assert encode_prompt(prompt).dtype == torch.float32


def test_case_punctuation_and_blanks_do_not_matter() -> None:
    plain = encode_prompt("a red circle moving right")
    assert torch.equal(encode_prompt("  A RED circle,  moving right. "), plain)
    assert torch.equal(encode_prompt(" \n"), encode_prompt(""))


def test_different_words_are_orthogonal() -> None:
    null = encode_prompt("")
    vectors = torch.cat([(encode_prompt(word) - null)[:, 0] for word in VOCABULARY])
    product = vectors @ vectors.T
    assert torch.equal(product, torch.diag(product.diagonal()))
    assert (product.diagonal() > 0).all()


def test_every_token_carries_the_whole_sentence() -> None:
    one, other = encode_prompt("a red circle moving right"), encode_prompt("a red circle moving left")
    assert ((one - other).norm(dim=-1) > 1).all()


def test_all_training_prompts_are_distinct() -> None:
    prompts = {clip.prompt for clip in random_clips(72, 0)}
    assert len(prompts) == 72
    assert len({tuple(encode_prompt(prompt).flatten().tolist()) for prompt in prompts}) == 72


def test_unknown_word_is_named_with_the_vocabulary() -> None:
    with pytest.raises(ValueError, match="'elephant'") as error:
        encode_prompt("a red elephant moving right")
    assert all(word in str(error.value) for word in VOCABULARY)


def test_too_many_words_are_refused() -> None:
    with pytest.raises(ValueError, match="9 words.*at most 8"):
        encode_prompt("a " * 9)
