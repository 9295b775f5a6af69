"""What arguments and lists name, and what is said of lists that cannot be understood."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from xclip_deploy.errors import InvalidArgumentError, VideoNotFoundError
from xclip_deploy.runtime.indexing import find_sources, name_sources
from xclip_deploy.runtime.indexing.report import Tally


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.mp4", "b.webm", "sub/c.MKV", "notes.md", ".hidden.mp4"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "videos"


def named(*paths: Any) -> list[str]:
    return [source.path for source in find_sources(paths).videos]


def rows(path: Path) -> list[tuple[str, str | None, Any]]:
    found = find_sources([path]).videos
    return [(os.path.relpath(s.path, path.parent), s.id, s.metadata) for s in found]


def test_folders_and_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [str(folder / name) for name in ("a.mp4", "b.webm", "sub/c.MKV")]
    assert named(folder) == expected
    assert named(folder, folder / "notes.md") == [*expected, str(folder / "notes.md")]
    monkeypatch.chdir(folder / "sub")
    assert named("..", folder / "a.mp4", "c.MKV") == expected
    assert find_sources([folder, "."]).folders == (str(folder), str(folder / "sub"))
    with pytest.raises(VideoNotFoundError, match="no such file or folder"):
        find_sources([folder, "gone"])


def test_an_empty_folder_is_told_apart(folder: Path) -> None:
    (folder / "empty").mkdir()
    found = find_sources([folder, folder / "empty"])
    assert found.empty_folders == {str(folder / "empty")}


def test_text_lists(folder: Path) -> None:
    path = folder / "list.txt"
    path.write_bytes(
        "\ufeffa.mp4\r\n\n# a comment\n  odd name \nsub/../b.webm\n/x/y.mp4\n".encode()
    )
    assert named(path) == [
        str(folder / "a.mp4"),
        str(folder / "  odd name "),
        str(folder / "b.webm"),
        "/x/y.mp4",
    ]
    assert [source.metadata for source in find_sources([path]).videos] == [None] * 4


def test_csv_types(folder: Path) -> None:
    path = folder / "table.CSV"
    path.write_bytes(
        "\ufefffile,id,n,share,day,text,code,big,none\r\n"
        'a.mp4,A,1,0.5,true,"x, ""y""\nz",007,9223372036854775808,\r\n'
        "b.webm,,-2,3,FALSE,,12,1,\r\n"
        "\r\n"
        "sub/c.MKV,C,,1e-3,,1,,,\r\n".encode()
    )
    assert rows(path) == [
        (
            "a.mp4",
            "A",
            {
                "n": 1,
                "share": 0.5,
                "day": True,
                "text": 'x, "y"\nz',
                "code": "007",
                "big": 9223372036854775808.0,
            },
        ),
        (
            "b.webm",
            None,
            {"n": -2, "share": 3.0, "day": False, "code": "12", "big": 1.0},
        ),
        ("sub/c.MKV", "C", {"share": 0.001, "text": "1"}),
    ]
    kinds = {name: type(value) for name, value in rows(path)[1][2].items()}
    assert kinds == {"n": int, "share": float, "day": bool, "code": str, "big": float}


def test_csv_of_files_alone_says_nothing_of_metadata(folder: Path) -> None:
    path = folder / "table.csv"
    path.write_text("path\na.mp4\n")
    assert rows(path) == [("a.mp4", None, None)]


def test_json_lines(folder: Path) -> None:
    path = folder / "table.jsonl"
    path.write_text(
        '{"file": "a.mp4", "id": "A", "n": 1, "none": null, "text": "é"}\n\n'
        '{"path": "b.webm"}\n{"file": "sub/c.MKV", "none": null}\n'
    )
    assert rows(path) == [
        ("a.mp4", "A", {"n": 1, "text": "é"}),
        ("b.webm", None, None),
        ("sub/c.MKV", None, {}),
    ]


def test_a_list_says_more_than_a_folder(folder: Path) -> None:
    path = folder / "table.csv"
    path.write_text("file,n\na.mp4,1\na.mp4,1\n")
    for order in ([folder, path], [path, folder]):
        found = {s.path: s.metadata for s in find_sources(order).videos}
        assert found[str(folder / "a.mp4")] == {"n": 1}
        assert found[str(folder / "b.webm")] is None
        assert len(found) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "", "line 1: found the columns none, expected one named file or path"),
        ("t.csv", "name,n\na,1\n", "line 1: found the columns name, n, expected one named"),
        ("t.csv", "file,path\na,b\n", "line 1: .*expected one named file or path"),
        ("t.csv", "file,n,n\na,1,2\n", "line 1: found two columns named 'n'"),
        ("t.csv", "file,n\na,1\nb,1,2\n", "line 3: found 3 cells, expected 2"),
        ("t.csv", "file,n\n,1\n", "line 2: found no file name"),
        ("t.csv", 'file,n\na,"1\n', "expected CSV as RFC 4180 has it"),
        ("t.csv", "file,two words\na,1\n", "line 2: metadata field 'two words'"),
        ("t.csv", "file,duration_s\na,1\n", "line 2: metadata field 'duration_s' is a column"),
        ("t.csv", "file,n\na,1\na,2\n", "line 3: .*/a was named before"),
        ("t.csv", "file,id\na,X\nb,X\n", "line 3: the id 'X' was given to another file"),
        ("t.csv", b"file,n\na,1\nb,caf\xe9\n", "line 3: found bytes that are no UTF-8"),
        ("t.txt", b"a.mp4\ncaf\xe9.mp4\n", "line 2: found bytes that are no UTF-8"),
        ("t.txt", b"a\0b.mp4\n", "line 1: found the file name 'a.x00b.mp4'"),
        ("t.jsonl", '{"file": "a"}\n{"file"\n', "line 2: found .*expected a JSON object"),
        ("t.jsonl", '["a"]\n', "line 1: .*expected an object with a text file or path"),
        ("t.jsonl", '{"file": 3}\n', "line 1: .*expected an object with a text file or path"),
        ("t.jsonl", '{"file": "a", "id": 3}\n', "line 1: found the id 3, expected a text"),
        ("t.jsonl", '{"file": "a", "n": NaN}\n', "line 1: .*NaN is no JSON"),
        ("t.jsonl", '{"file": "a", "n": [1]}\n', "line 1: metadata field 'n' holds a list"),
        ("t.jsonl", '{"file": "a", "t": "\\ud800"}\n', "line 1: .*no UTF-8 text"),
    ],
)
def test_lists_that_are_refused(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        find_sources([path])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_id_that_is_the_path_of_another(folder: Path) -> None:
    path = folder / "table.csv"
    path.write_text(f"file,id\na.mp4,{folder / 'b.webm'}\n")
    assert find_sources([path]).videos[0].id == str(folder / "b.webm")
    with pytest.raises(InvalidArgumentError, match="is another file's path"):
        find_sources([path, folder])


def test_a_folder_that_may_not_be_listed_is_a_failure(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may list any: the refusal is of our making."""
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = find_sources([folder])
    assert len(found.videos) == 2
    assert [failure.path for failure in found.failed] == [str(folder / "sub")]
    assert "cannot be listed: Permission denied" in found.failed[0].reason


def test_names_that_are_no_text(tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9.mp4")
    odd.touch()
    found = find_sources([tmp_path])
    assert found.videos == []
    assert found.failed[0].path == f"{tmp_path}/caf\\udce9.mp4"
    assert name_sources([odd], ["coffee"]).failed == found.failed


@pytest.mark.parametrize("name", ["list.txt", "list.csv", "list.jsonl"])
def test_a_list_that_is_a_pipe(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(InvalidArgumentError, match="is no regular file but a pipe; expected a li"):
        find_sources([tmp_path / name])


# What folders hold besides videos


def test_what_is_passed_over_is_told(folder: Path) -> None:
    (folder / "sub" / "x.unknown").write_text("text")
    found = find_sources([folder])
    assert found.passed_over == (str(folder / "notes.md"), str(folder / "sub" / "x.unknown"))
    assert not found.failed


def test_a_folder_of_files_without_a_video_fails(folder: Path, tmp_path: Path) -> None:
    others = tmp_path / "others"
    others.mkdir()
    for name in ("a.jpg", "b.jpg", "c"):
        (others / name).touch()
    found = find_sources([folder, others])
    assert found.empty_folders == {str(others)}
    (failure,) = found.failed
    assert failure.path == str(others)
    assert "others: holds 3 files and no video (2 .jpg, 1 without ending); " in failure.reason


def test_a_file_name_that_is_no_text_is_passed_over_too(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")).touch()
    (tmp_path / "a.mp4").touch()
    (name,) = find_sources([tmp_path]).passed_over
    assert name.endswith(r"\udcff.jpg")
    name.encode()


def test_the_report_says_what_was_passed_over(folder: Path) -> None:
    for n in range(12):
        (folder / f"x{n:02d}.unknown").touch()
    tally = Tally(find_sources([folder]), lambda _: None)
    report = tally.report()
    assert len(report.passed_over) == len(report.to_dict()["passed_over"]) == 13
    lines = str(report).splitlines()
    assert lines[0] == "passed over 13 files that are no videos: 12 .unknown, 1 .md"
    assert lines[1] == f"passed over: {folder / 'x00.unknown'}"
    assert lines[11] == "passed over: 2 more of unknown endings"
    assert "passed_over=13" in repr(report)
