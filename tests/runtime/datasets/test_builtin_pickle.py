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
