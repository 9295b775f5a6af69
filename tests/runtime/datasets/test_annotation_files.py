from __future__ import annotations

import os
from pathlib import Path

import pytest

from xclip_deploy.errors import AnnotationError
from xclip_deploy.runtime.datasets.annotation_files import (
    MAX_BYTES,
    find_annotation,
    read_ids,
    read_lines,
    read_text,
)
from xclip_deploy.runtime.datasets.json_annotations import read_json
from xclip_deploy.runtime.datasets.tables import read_table


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "annotations.txt"


def test_the_preferred_file_is_taken(tmp_path: Path) -> None:
    (tmp_path / "b").touch()
    assert find_annotation(tmp_path, "a", "b") == tmp_path / "b"
    (tmp_path / "a").touch()
    assert find_annotation(tmp_path, "a", "b") == tmp_path / "a"


def test_of_many_other_files_a_few_are_named(tmp_path: Path) -> None:
    for number in range(25):
        (tmp_path / f"{number:02}").touch()
    with pytest.raises(AnnotationError, match=r"holds 00, .*, 09 and 15 more; expected a or b$"):
        find_annotation(tmp_path, "a", "b")


def test_a_folder_that_is_none(path: Path) -> None:
    with pytest.raises(AnnotationError, match="No such file or directory; expected a folder with"):
        find_annotation(path, "a")
    path.touch()
    with pytest.raises(AnnotationError, match=r"Not a directory; expected a folder with a$"):
        find_annotation(path, "a")


def test_text_with_a_byte_order_mark(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + "é\n".encode())
    assert read_text(path) == "é\n"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"abc\xe9def", r"byte 0xe9 at offset 3 is not UTF-8; .* iconv -f LATIN1 -t UTF-8 annot"),
        (b"\xef\xbb\xbfa\xff", "byte 0xff at offset 4 is not UTF-8"),
        ("abc".encode("utf-16"), "byte 0xff at offset 0 is not UTF-8"),
        (b"", r"is empty \(0 bytes\)"),
    ],
)
def test_bytes_that_are_no_text(path: Path, content: bytes, expected: str) -> None:
    path.write_bytes(content)
    for read in (read_text, read_lines, read_ids, read_json):
        with pytest.raises(AnnotationError, match=expected):
            read(path)
    with pytest.raises(AnnotationError, match=expected):
        read_table(path, ())


def test_a_file_of_absurd_size_is_not_read(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse: takes no space
    with pytest.raises(AnnotationError, match=f"has {MAX_BYTES + 1} bytes; expected"):
        read_text(path)


def test_what_is_no_file(path: Path) -> None:
    with pytest.raises(AnnotationError, match="cannot be read: No such file"):
        read_text(path)
    path.mkdir()
    with pytest.raises(AnnotationError, match="is no regular file"):
        read_text(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_does_not_block(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(AnnotationError, match="is no regular file"):
        read_text(path)


def test_lines_keep_their_numbers(path: Path) -> None:
    path.write_bytes("a\r\n\n b\u2028c \n \rd".encode())
    assert read_lines(path) == [(1, "a"), (3, " b\u2028c "), (5, "d")]


def test_ids(path: Path) -> None:
    path.write_text(" b\na \n\n")
    assert read_ids(path) == ["b", "a"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [("\n \n", "lists no video"), ("a\n\na\n", "line 3: video a was listed before, at line 1")],
)
def test_wrong_lists(path: Path, content: str, expected: str) -> None:
    path.write_text(content)
    with pytest.raises(AnnotationError, match=expected):
        read_ids(path)


def test_a_table(path: Path) -> None:
    path.write_bytes(b' a ,b\r\n1,"x, ""y""\nz"\r\n\r\n2,w\r\n')
    assert read_table(path, ("b",)) == [
        (3, {"a": "1", "b": 'x, "y"\nz'}),
        (5, {"a": "2", "b": "w"}),
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a,b,,,c,c\n1,2,3,4,5,6\n", "column c occurs twice"),
        ("a,c\n1,2\n", "columns are a, c; expected a, b in the first row"),
        ("a,b,a\n1,2,3\n", "column a occurs twice"),
        ("a,b\n", "no rows below the header"),
        ("a,b\n1\n", r":2: 1 fields; expected 2 \(a, b\)"),
        ('a,b\n1,2\n1,"2\n', ":3: not valid CSV: unexpected end of data"),
        ('a,b\n1,"2"3\n', ":2: not valid CSV"),
        (f"a,b\n1,{'x' * 200_000}\n", "not valid CSV: field larger"),
    ],
)
def test_wrong_tables(path: Path, content: str, expected: str) -> None:
    path.write_text(content)
    with pytest.raises(AnnotationError, match=expected):
        read_table(path, ("a", "b"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"a": 1,\n "b" 2}', "not valid JSON: Expecting ':' delimiter, line 2, column 6"),
        ('{"a": 1', "not valid JSON: .*, column 8"),
        ('[{"a": {"b": 1, "b": 1}}]', "key 'b' occurs twice in one object; expected each key once"),
        ("[" * 100_000, "not usable JSON"),
    ],
)
def test_wrong_json(path: Path, content: str, expected: str) -> None:
    path.write_text(content)
    with pytest.raises(AnnotationError, match=expected):
        read_json(path)
