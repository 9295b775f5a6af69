"""Words of tokens: byte-pair pieces joined; start, end and padding named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from xclip_deploy.runtime.tokenizer import Tokenizer


class TokenKind(str, Enum):
    """The kind of a word of an explanation."""

    WORD = "word"
    START = "start"
    END = "end"
    PADDING = "padding"
    """All padded positions together."""


@dataclass(frozen=True)
class Word:
    """Token positions that belong together."""

    text: str
    kind: TokenKind
    positions: tuple[int, ...]
    """Positions among the model's W tokens."""


def words_of(tokenizer: Tokenizer, token_ids: npt.NDArray[np.integer[Any]]) -> tuple[Word, ...]:
    """Return the words of one tokenised text [W], in order; they cover every position once.

    CLIP's tokenizer splits a text into words before it looks for byte pairs: letters in a row, one
    digit, or signs in a row. A word that the model's length cuts off ends with the text.
    """
    ids = [int(token) for token in token_ids]
    # Padding is id 0, which is also a piece that begins words. Only zeros at the end are padding.
    length = max((n + 1 for n, token in enumerate(ids) if token), default=0)
    words: list[Word] = []
    pieces: list[tuple[int, bytes]] = []

    def close() -> None:
        if pieces:
            text = b"".join(part for _, part in pieces).decode("utf-8", "replace")
            words.append(Word(text, TokenKind.WORD, tuple(place for place, _ in pieces)))
            pieces.clear()

    for place, token in enumerate(ids[:length]):
        if token in (tokenizer.start_id, tokenizer.end_id):
            close()
            kind = TokenKind.START if token == tokenizer.start_id else TokenKind.END
            words.append(Word(kind.value, kind, (place,)))
            continue
        piece, is_last = tokenizer.piece(token)
        pieces.append((place, piece))
        if is_last:
            close()
    close()
    if length < len(ids):
        padding = tuple(range(length, len(ids)))
        words.append(Word(TokenKind.PADDING.value, TokenKind.PADDING, padding))
    return tuple(words)


def without(token_ids: npt.NDArray[np.integer[Any]], word: Word) -> npt.NDArray[np.integer[Any]]:
    """Remove a word from a tokenised text [W] and pad it to the same length."""
    rest = np.delete(token_ids, word.positions)
    return np.pad(rest, (0, len(word.positions)))


def sum_by_word(values: npt.NDArray[np.float64], words: Sequence[Word]) -> npt.NDArray[np.float64]:
    """Add up ``values`` [W, ...] of tokens for each of n words: [n, ...]."""
    return np.stack([values[list(word.positions)].sum(axis=0) for word in words])


def max_by_word(values: npt.NDArray[np.float64], words: Sequence[Word]) -> npt.NDArray[np.float64]:
    """Take the largest of ``values`` [W, ...] of tokens for each of n words: [n, ...]."""
    return np.stack([values[list(word.positions)].max(axis=0) for word in words])
