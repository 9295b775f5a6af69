from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.evidence import TokenKind, Word, without, words_of
from xclip_deploy.runtime.evidence.words import max_by_word, sum_by_word
from xclip_deploy.runtime.tokenizer import Tokenizer, clean_text


@functools.cache
def opened() -> Tokenizer:
    return Tokenizer.default()


@pytest.fixture
def tokenizer() -> Tokenizer:
    return opened()


def words(tokenizer: Tokenizer, text: str, length: int = 32) -> tuple[Word, ...]:
    return words_of(tokenizer, tokenizer.encode([text], length)[0])


def proper(found: tuple[Word, ...]) -> list[str]:
    return [word.text for word in found if word.kind is TokenKind.WORD]


def test_pieces_are_joined(tokenizer: Tokenizer) -> None:
    found = words(tokenizer, "A cat's antidisestablishmentarianism, 42!")
    assert proper(found) == ["a", "cat", "'s", "antidisestablishmentarianism", ",", "4", "2", "!"]
    assert len(found[4].positions) > 1
    assert [found[0].kind, *[word.kind for word in found[-2:]]] == [
        TokenKind.START,
        TokenKind.END,
        TokenKind.PADDING,
    ]


@pytest.mark.parametrize("text", ["naïve café", "犬が走る", "🐕‍🦺 🎉", "Ωμέγα мир"])
def test_characters_of_several_bytes(tokenizer: Tokenizer, text: str) -> None:
    assert "".join(proper(words(tokenizer, text))) == clean_text(text).replace(" ", "")


def test_id_zero_is_a_sign_in_the_text_and_padding_after_it(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(["!!!!!!!!! a"], 16)[0]
    assert 0 in ids[: int(ids.argmax())] or proper(words_of(tokenizer, ids))[0] == "!!!!!!!!!"
    assert proper(words_of(tokenizer, ids)) == ["!!!!!!!!!", "a"]
    ids = np.array([tokenizer.start_id, 0, 0, tokenizer.end_id, 0, 0])
    found = words_of(tokenizer, ids)
    assert [word.positions for word in found] == [(0,), (1, 2), (3,), (4, 5)]
    assert found[1].text == "!!"


def test_a_text_that_is_cut_and_one_that_fills_the_model(tokenizer: Tokenizer) -> None:
    found = words(tokenizer, "a dog and a cat and a cow", 6)
    assert proper(found) == ["a", "dog", "and", "a"]
    assert found[-1].kind is TokenKind.END
    cut = words(tokenizer, "antidisestablishmentarianism", 4)
    assert "antidisestablishmentarianism".startswith(proper(cut)[0])


def test_end_tokens_in_the_text(tokenizer: Tokenizer) -> None:
    found = words(tokenizer, "a <|endoftext|> dog", 10)
    kinds = [word.kind.value for word in found]
    assert kinds == ["start", "word", "end", "word", "end", "padding"]


@given(text=st.text(max_size=60), length=st.integers(3, 24))
def test_every_position_belongs_to_one_word(text: str, length: int) -> None:
    tokenizer = opened()
    found = words(tokenizer, text, length)
    assert [place for word in found for place in word.positions] == list(range(length))
    values = np.random.default_rng(length).normal(size=(length, 3))
    np.testing.assert_allclose(sum_by_word(values, found).sum(axis=0), values.sum(axis=0))
    assert (max_by_word(values, found).max(axis=0) == values.max(axis=0)).all()
    for word in found:
        rest = without(tokenizer.encode([text], length)[0], word)
        assert rest.shape == (length,)


def test_without_a_word(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(["a red dog"], 8)[0]
    red = next(word for word in words_of(tokenizer, ids) if word.text == "red")
    assert (without(ids, red) == tokenizer.encode(["a dog"], 8)[0]).all()


def test_a_piece_that_is_not_there(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidArgumentError, match="token id 50000: expected 0 to 49407"):
        tokenizer.piece(50000)
