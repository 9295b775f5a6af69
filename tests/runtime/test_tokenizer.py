from __future__ import annotations

import functools
import hashlib
import html
import json
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import models

from xclip_deploy.errors import BundleIntegrityError, InvalidArgumentError
from xclip_deploy.runtime.tokenizer import (
    MAX_CHARACTERS,
    Tokenizer,
    clean_text,
    count_tokens,
    read_merges,
)

GOLDEN: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "golden" / "tokenizer.json").read_text(encoding="utf-8")
)
START, END = 49406, 49407


@functools.cache
def default() -> Tokenizer:
    return Tokenizer.default()


@functools.cache
def reopened() -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tokenizer.json")
        default().save(path)
        return Tokenizer.open(path)


@pytest.fixture(params=[default, reopened], ids=lambda make: make.__name__)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    made: Tokenizer = request.param()
    return made


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: ascii(case["text"][:24]))
def test_ids_are_those_of_the_authors(tokenizer: Tokenizer, case: dict[str, Any]) -> None:
    assert tokenizer.tokenize(case["text"]) == case["raw"]
    assert tokenizer.encode([case["text"]], 32).tolist() == [case["ids32"]]
    assert tokenizer.encode([case["text"]], 20).tolist() == [case["ids20"]]


def test_a_batch_is_its_rows(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode([case["text"] for case in GOLDEN], 32)
    assert ids.dtype == np.int32
    assert ids.tolist() == [case["ids32"] for case in GOLDEN]


@pytest.mark.parametrize("max_words", [32, 5])
def test_tokens_are_counted_with_start_and_end(tokenizer: Tokenizer, max_words: int) -> None:
    texts = ["", "dog", "a man walks his dog along the beach"]
    found = count_tokens(tokenizer.encode(texts, max_words))
    assert found.dtype == np.int32
    assert found.tolist() == [min(max_words, len(tokenizer.tokenize(t)) + 2) for t in texts]


def test_merge_table_is_that_of_clip() -> None:
    data = resources.files("xclip_deploy.runtime.data")
    packed = data.joinpath("bpe_simple_vocab_16e6.txt.gz").read_bytes()
    expected = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
    assert hashlib.sha256(packed).hexdigest() == expected
    merges = read_merges()
    assert len(merges) == 48894
    assert merges[0] == ("i", "n")


def test_vocabulary(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 49408
    assert (tokenizer.start_id, tokenizer.end_id) == (START, END)


# "í\xa0\x80" is what half a surrogate pair looks like after a wrong decoding.
@example("\ud800")
@example("a\udcffb \udfff")
@example("í\xa0\x80 í°€")
@example("\x00\x1f\x7f\x85​﻿")
@example("&#xd800; &amp;amp;lt; &#0;")
@example("<|startoftext|> a <|endoftext|> b")
@given(st.text(alphabet=st.characters(codec=None, exclude_categories=()), max_size=200))
def test_any_text_is_framed(text: str) -> None:
    ids = default().encode([text], 12)[0]
    tokens = default().tokenize(text)
    kept = min(len(tokens), 10)
    assert ids.shape == (12,)
    assert ids[0] == START
    assert ids[1 : 1 + kept].tolist() == tokens[:10]
    assert ids[1 + kept] == END
    assert (ids[2 + kept :] == 0).all()
    assert ((ids >= 0) & (ids < default().vocab_size)).all()


@given(st.text(max_size=60))
def test_a_saved_tokenizer_is_the_same(text: str) -> None:
    assert reopened().tokenize(text) == default().tokenize(text)


@given(st.lists(st.sampled_from(["a", "dog", "é", "3", "!"]), max_size=8), st.sampled_from(" \t\n"))
def test_white_space_and_case_do_not_matter(words: list[str], space: str) -> None:
    plain = " ".join(words)
    odd = f"{space}{space}{(space * 3).join(words)}{space}".upper()
    assert clean_text(odd) == plain
    assert default().tokenize(odd) == default().tokenize(plain)


@given(st.text(st.characters(max_codepoint=0x17F), max_size=40))
@example("1 &lt; 2 &amp; 3")
@example("\x1b[36;44mcolours\x1b[m")
@example("a \r\n\tb")
def test_texts_that_skip_the_repair_are_whole_without_it(text: str) -> None:
    repaired = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    assert clean_text(text) == " ".join(repaired.split()).lower()


@given(st.text([chr(n) for n in range(0x20, 0x7F)], max_size=60))
def test_the_repair_changes_no_plain_text(text: str) -> None:
    plain = text.replace("&", "")
    assert ftfy.fix_text(plain) == plain


def test_html_is_unescaped_twice() -> None:
    # The "<" keeps ftfy from unescaping anything of its own accord.
    assert clean_text("1 < 2 &amp;amp; 3") == "1 < 2 & 3"
    assert clean_text("1 < 2 &amp;amp;amp; 3") == "1 < 2 &amp; 3"


def test_half_a_character_is_a_question_mark(tokenizer: Tokenizer) -> None:
    assert tokenizer.tokenize("a \ud800 b") == tokenizer.tokenize("a ? b")


def test_empty_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode([""], 5).tolist() == [[START, END, 0, 0, 0]]


def test_no_texts(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode([], 32).shape == (0, 32)


def test_a_long_text_is_cut(tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="xclip_deploy"):
        ids = tokenizer.encode([" ".join(["dog"] * 10_000)], 32)[0]
    assert ids[0] == START
    assert ids[-1] == END
    assert len(set(ids[1:-1].tolist())) == 1
    assert "10000 tokens is cut to the 30" in caplog.text


def test_what_is_cut_is_counted(tokenizer: Tokenizer) -> None:
    texts = ["", "a dog", " ".join(["dog"] * 30), " ".join(["dog"] * 31), " ".join(["dog"] * 99)]
    assert tokenizer.count_cut(texts, 32) == [0, 0, 0, 1, 69]
    assert tokenizer.count_cut(iter(texts), 101) == [0] * 5


def test_characters_have_a_limit(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidArgumentError, match="1,000,001 characters; at most 1,000,000"):
        tokenizer.encode(["x" * (MAX_CHARACTERS + 1)], 32)


def test_a_single_text_is_no_sequence(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidArgumentError, match="found a single str"):
        tokenizer.encode("a dog", 32)


@pytest.mark.parametrize("wrong", [None, 7, b"a dog", ["a dog"]])
def test_what_is_no_text(tokenizer: Tokenizer, wrong: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=f"found {type(wrong).__name__}"):
        tokenizer.encode(["a dog", wrong], 32)


def test_a_file_that_is_no_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(BundleIntegrityError, match="not a tokenizer file"):
        Tokenizer.open(path)
    for content in (b"", b"{}", b"[]", b'{"model": 3}', b"\xff\xfe", b"not JSON"):
        path.write_bytes(content)
        with pytest.raises(BundleIntegrityError, match="not a tokenizer file"):
            Tokenizer.open(path)
    default().save(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(BundleIntegrityError, match="not a tokenizer file"):
        Tokenizer.open(path)


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[])).save(str(path))
    with pytest.raises(BundleIntegrityError, match="expected CLIP's vocabulary"):
        Tokenizer.open(path)
