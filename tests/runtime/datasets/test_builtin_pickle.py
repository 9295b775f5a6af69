from __future__ import annotations

import pickle
import pickletools
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xclip_deploy.errors import AnnotationError
from xclip_deploy.runtime.datasets import builtin_pickle
from xclip_deploy.runtime.datasets.builtin_pickle import read_builtin_pickle, text_of_pickle

CONTAINERS = {"a": [("b", 1, 2.5, None, True), {"c"}], "d": {"e": b"f"}}


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_containers_come_back(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "a.pkl"
    content: Any = CONTAINERS if protocol > 3 else {"a": [1, "b"]}  # sets have no opcode before 4
    path.write_bytes(pickle.dumps(content, protocol))
    assert read_builtin_pickle(path) == content


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (np.array(["a"]), "numpy"),
        (np.int64(3), "numpy"),
        (OrderedDict(a=1), "collections.OrderedDict"),
        (Path("a"), "pathlib"),
        (print, "builtins.print"),
        (dict, "builtins.dict"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_anything_else_is_refused_by_name(
    tmp_path: Path, value: Any, name: str, protocol: int
) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps([value], protocol))
    expected = name.replace("builtins", "__builtin__" if protocol == 2 else "builtins")
    with pytest.raises(AnnotationError, match=f"the pickle wants {expected}"):
        read_builtin_pickle(path)


@pytest.mark.parametrize(
    ("content", "opcode"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "GLOBAL"),
        (b"(ios\nsystem\n.", "INST"),
        (b"(cos\nsystem\nS'true'\no.", "OBJ"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "STACK_GLOBAL"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02K\x01Q.", "BINPERSID"),
        (b"P1\n.", "PERSID"),
    ],
)
def test_every_opcode_that_leads_outside_is_refused(
    tmp_path: Path, content: bytes, opcode: str
) -> None:
    assert opcode in {found.name for found, _, _ in pickletools.genops(content)}
    path = tmp_path / "a.pkl"
    path.write_bytes(content)
    with pytest.raises(AnnotationError, match=r"the pickle wants|not a usable pickle"):
        read_builtin_pickle(path)


@pytest.mark.parametrize(
    "content",
    [
        b"not a pickle",
        b"{}",
        pickle.dumps(CONTAINERS)[:-4],
        b"\x80\xff.",
        b"]}b.",  # the state of a list
        b"))R.",  # a call of a tuple
    ],
)
def test_what_is_no_pickle(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(content)
    with pytest.raises(AnnotationError, match="not a usable pickle"):
        read_builtin_pickle(path)


def key_of_shared_tuples(levels: int) -> bytes:
    return b")" + b"q\x00h\x00h\x00\x86" * levels


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        # 60 tuples, each twice the one before: their hash visits 2^60 of them.
        (b"\x80\x02}" + key_of_shared_tuples(60) + b"Ns.", "a container as a key"),
        (b"\x80\x02}(" + key_of_shared_tuples(60) + b"Nu.", "a container as a key"),
        (b"\x80\x02(" + key_of_shared_tuples(60) + b"Nd.", "a container as a key"),
        (b"\x80\x04\x8f(" + key_of_shared_tuples(60) + b"\x90.", "member of a set"),
        (b"\x80\x04(" + key_of_shared_tuples(60) + b"\x91.", "member of a set"),
        # From the memo, from a copy, and past another value.
        (b"\x80\x02" + key_of_shared_tuples(60) + b"q\x010}h\x01Ns.", "a container as a key"),
        (b"\x80\x02}" + key_of_shared_tuples(60) + b"2s.", "a container as a key"),
        (b"\x80\x02}(NN" + key_of_shared_tuples(60) + b"Nu.", "a container as a key"),
        # A memo of 100 million entries takes 1.6 GB.
        (b"\x80\x02]r\x00\xe1\xf5\x05.", "the memo entry 1e[+]08 at operation 3"),
        (b"]p100000000\n.", "the memo entry 1e[+]08 at operation 2"),
    ],
)
def test_what_asks_for_much_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(content)
    with pytest.raises(AnnotationError, match=f"{reason}.*refused as hostile"):
        read_builtin_pickle(path)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_numbers_whose_hashes_collide(tmp_path: Path, protocol: int) -> None:
    prime = (1 << 61) - 1
    # Multiples of 2^61 - 1 have the hash 0, so that n keys take n² comparisons.
    path = tmp_path / "a.pkl"
    items = [b"\x8a\x0b" + (n * prime).to_bytes(11, "little") + b"N" for n in range(1, 20_000)]
    path.write_bytes(b"\x80\x02}(" + b"".join(items) + b"u.")
    with pytest.raises(AnnotationError, match="more than 10000 keys that are no texts"):
        read_builtin_pickle(path)
    many = dict.fromkeys(range(20_000)) | {n * 1.5: None for n in range(9000)}
    path.write_bytes(pickle.dumps(many, protocol))
    assert read_builtin_pickle(path) == many


def test_more_operations_than_captions_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtin_pickle, "MAX_OPERATIONS", 1000)
    path = tmp_path / "a.pkl"
    path.write_bytes(b"(" + b"N0" * 600 + b"t.")
    with pytest.raises(AnnotationError, match="more than 1000 operations; refused as hostile"):
        read_builtin_pickle(path)


def test_texts_that_python_2_wrote(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(b"(dp0\nS'caf\\xe9'\np1\n(lp2\n(lp3\ng1\naVna\\u00efve\np4\naas.")
    assert read_builtin_pickle(path) == {b"caf\xe9": [[b"caf\xe9", "naïve"]]}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.tuples(inner, inner)
            | st.dictionaries(st.text() | st.integers() | st.binary() | st.none(), inner)
            | st.sets(st.text() | st.floats(allow_nan=False))
            | st.frozensets(st.integers())
        ),
    ),
    st.sampled_from([4, 5]),
)
def test_every_container_comes_back(
    tmp_path_factory: pytest.TempPathFactory, value: object, protocol: int
) -> None:
    path = tmp_path_factory.mktemp("container") / "a.pkl"
    path.write_bytes(pickle.dumps([value, value], protocol))
    assert read_builtin_pickle(path) == [value, value]


@given(st.binary(max_size=60), st.integers(0, 60))
def test_damage_never_leads_to_another_error(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, position: int
) -> None:
    content = pickle.dumps({"a": [["b", "c"]]}, 0)
    path = tmp_path_factory.mktemp("damage") / "a.pkl"
    path.write_bytes(content[:position] + noise + content[position:])
    try:
        read_builtin_pickle(path)
    except AnnotationError as error:
        assert str(path) in str(error)  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize(
    ("value", "text"),
    [("é", "é"), ("é".encode(), "é"), ("é".encode("latin-1"), "é"), (b"", "")],
)
def test_texts_of_either_python(value: str | bytes, text: str) -> None:
    assert text_of_pickle(value, "here") == text


def test_what_is_no_text() -> None:
    with pytest.raises(AnnotationError, match="here: list; expected text"):
        text_of_pickle([], "here")
