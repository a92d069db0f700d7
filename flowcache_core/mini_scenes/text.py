"""The language of mini scenes: phrases between commas, each of which says all about one thing.

Cross-attention has no sense of which words belong together, so each token carries its word, its position in the phrase
and the sum of the phrase. Words that the mini model knows have its vectors, so that its weights are a start.
"""

from __future__ import annotations

import functools
from collections.abc import Container

import torch
from torch import Tensor

from ..mini import text as mini
from ..mini.data import COLOURS, SHAPES
from .data import LANES, ORDINALS

TEXT_DIM = mini.TEXT_DIM
TOKENS = 40
PHRASE_WORDS = mini.TOKENS
FILLERS = ("a", "moving", "by", "camera")
NEW_WORDS = (
    *LANES, "resting", "enters", "turns", "camera", "panning", "still", "back", "by", "day", "night", "falls", "breaks",
    "post", *ORDINALS[1:],
)  # fmt: skip
VOCABULARY: tuple[str, ...] = (*(word for word in mini.VOCABULARY if word not in ("up", "down")), *NEW_WORDS)
DROP_TEXT, DROP_COLOURS, DROP_SHAPES = 0.10, 0.10, 0.07  # chances in training; what is not said is left to chance


def encode_prompt(text: str) -> Tensor:
    """Embedding [1, 40, 64] of a prompt such as "a high red circle moving right, camera still, by night".

    "" is the null prompt. Case and repeated blanks do not matter; words may be left out.

    Raises:
        ValueError: a word is not in the vocabulary, a phrase has more than 8 words, or the prompt more than 40. The
            message lists what is accepted.
    """
    mini.words_of(text, VOCABULARY, TOKENS, "the mini scenes model")
    word_vectors, position_vectors = _vectors()
    tokens = torch.zeros(TOKENS, TEXT_DIM)
    filled = 0
    for phrase in phrases_of(text):
        words = mini.words_of(phrase, VOCABULARY, PHRASE_WORDS, "a phrase of the mini scenes model")
        if not words:
            continue
        said = word_vectors[[VOCABULARY.index(word) for word in words]]
        meant = said[[i for i, word in enumerate(words) if word not in FILLERS]]
        rows = slice(filled, filled + len(words))
        tokens[rows] = said + position_vectors[: len(words)] + (meant.sum(0) if len(meant) else 0)
        filled += len(words)
    return tokens[None]


def phrases_of(text: str) -> list[str]:
    """The prompt's phrases: what lies between commas, full stops and semicolons."""
    for mark in ".;!?:\n":
        text = text.replace(mark, ",")
    return text.split(",")


def thinned(prompt: str, generator: torch.Generator) -> str:
    """The prompt as a training step sees it: now and then nothing, without any colour, or without any shape."""
    chance = torch.rand((), generator=generator).item()
    if chance < DROP_TEXT:
        return ""
    if chance < DROP_TEXT + DROP_COLOURS:
        return without(prompt, COLOURS)
    return without(prompt, SHAPES) if chance < DROP_TEXT + DROP_COLOURS + DROP_SHAPES else prompt


def without(prompt: str, words: Container[str]) -> str:
    """The prompt without certain words."""
    kept = (" ".join(w for w in phrase.split() if w not in words) for phrase in prompt.split(","))
    return ", ".join(kept)


@functools.lru_cache(maxsize=1)
def _vectors() -> tuple[Tensor, Tensor]:
    """Vectors of the words, in the order of the vocabulary, and of the positions in a phrase (half as long)."""
    rows, known = mini.orthogonal_vectors(), len(mini.VOCABULARY)
    new = 1 + known + mini.TOKENS
    place = {word: 1 + i for i, word in enumerate(mini.VOCABULARY)}
    place |= {word: new + i for i, word in enumerate(NEW_WORDS)}
    return rows[[place[word] for word in VOCABULARY]], rows[1 + known : new] / 2
