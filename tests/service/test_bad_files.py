"""Files with faults of every kind, sent to every address that takes files."""

from __future__ import annotations

import gzip
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crafted_files import black_png
from running_services import service_in
from served_programs import MORE_BYTES, Program, answers_of, memory_of, wait_for_all
from starlette.testclient import TestClient

from xclip_deploy.wire import API

TESTS = Path(__file__).resolve().parents[1]
SHARED = next(
    (path / "shared" / "cases" for path in TESTS.parents if (path / "shared" / "cases").is_dir()),
    None,
)
"""Folder of further cases beside the repository; None where there is none."""
PARTS = {"videos": "files", "search/image": "file", "search/video": "file", "encode/videos": "file"}
"""Addresses that take files, and the names of their parts."""
EXPECTED = {200, 202, 413, 415, 422}
File = tuple[str, bytes]


def real_files(folder: Path) -> list[File]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".md")
    return [(path.name, path.read_bytes()) for path in paths]


def damaged(file: File, rng: random.Random) -> list[File]:
    """Cut a file short, drop its start, flip bytes at its start and anywhere, and blank a part."""
    name, content = file
    size = len(content)
    found = [content[: size * part // 100] for part in (1, 50, 99)]
    found.append(content[rng.randrange(1, 64) :])
    for until, count in ((min(size, 600), 12), (size, 200)):
        flipped = bytearray(content)
        for _ in range(count):
            flipped[rng.randrange(until)] = rng.randrange(256)
        found.append(bytes(flipped))
    start = rng.randrange(size // 2)
    found.append(content[:start] + bytes(size // 4) + content[start + size // 4 :])
    found.append(content + content)
    return [(f"{n}-{name}", each) for n, each in enumerate(found)]


def crafted(rng: random.Random) -> list[File]:
    """Files that no camera writes: lists of other files, bombs, and heads that promise much."""
    box = struct.pack(">I4s", 0xFFFF_FFF0, b"moov")
    brand = struct.pack(">I4s4sI4s", 20, b"ftyp", b"isom", 0, b"isom")
    nested = brand
    for _ in range(200):
        nested += struct.pack(">I4s", 1 << 20, b"moov")
    ebml = b"\x1a\x45\xdf\xa3" + b"\x01" + b"\xff" * 7
    return [
        ("one.mp4", b"\0"),
        ("noise.mp4", rng.randbytes(40_000)),
        ("zeros.mkv", bytes(200_000)),
        ("text.mp4", b"no video at all\n" * 100),
        ("page.mp4", b"<!doctype html><script>alert(1)</script>"),
        ("list.m3u8", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"),
        ("remote.m3u8", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n"),
        ("list.mp4", b"ffconcat version 1.0\nfile /etc/passwd\n"),
        ("stream.sdp", b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n"),
        ("grid.mpd", b"<?xml version='1.0'?><MPD><BaseURL>file:///etc/</BaseURL></MPD>"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'><image href='/x'/></svg>"),
        ("packed.mp4.gz", gzip.compress(bytes(1 << 22))),
        ("program", b"\x7fELF" + rng.randbytes(2000)),
        ("brand.mp4", brand),
        ("huge_box.mp4", brand + box),
        ("nested.mp4", nested),
        ("huge.mkv", ebml + rng.randbytes(500)),
        ("riff.avi", b"RIFF" + b"\xff" * 4 + b"AVI LIST" + b"\xff" * 4 + b"hdrl"),
        ("head.gif", b"GIF89a" + b"\xff" * 20),
        ("head.jpg", b"\xff\xd8\xff\xe0" + rng.randbytes(300)),
        ("head.webp", b"RIFF\x10\0\0\0WEBPVP8L" + rng.randbytes(40)),
        ("head.tiff", b"II*\0\xff\xff\xff\xff"),
        ("head.bmp", b"BM" + b"\xff" * 60),
        ("bomb.png", black_png(30_000, 30_000)),
        ("../../etc/passwd", b"\x1a\x45\xdf\xa3"),
        ("a\u202e4pm.exe\n", b"GIF89a"),
    ]  # fmt: skip


def send(client: Any, address: str, file: File) -> Any:
    name, content = file
    parts = [(PARTS[address], (name, content, "application/octet-stream"))]
    return client.post(f"{API}/{address}", files=parts)


def check(answer: Any, secret: str, label: object) -> None:
    """An answer is one that the description names, and it names no folder."""
    assert answer.status_code in EXPECTED, (label, answer.text)
    assert secret not in answer.text, (label, answer.text)
    if answer.status_code >= 400:
        assert set(answer.json()["error"]) == {"kind", "message", "request_id"}


def test_some_bad_files(open_service: Callable[..., TestClient], clips: Path) -> None:
    client = open_service()
    rng = random.Random(4)
    files = damaged(real_files(clips / "conditions")[0], rng)[2:5] + crafted(rng)[1::6]
    secret = str(service_in(client).settings.data.parent)
    for n, file in enumerate(files):
        for address in (*list(PARTS)[1 + n % 3 :][:1], "videos"):
            check(send(client, address, file), secret, (address, file[0]))
    jobs = wait_for_all(client)
    assert {job["state"] for job in jobs.values()} == {"done"}, jobs
    assert client.get("/health/ready").status_code == 200
    assert max(answers_of(client)) < 500


@pytest.mark.slow
def test_all_bad_files(
    bundle_path: Path, clips: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Whole files and crafted ones go to every address, damaged ones to one each."""
    rng = random.Random(15)
    whole = real_files(clips) + (real_files(SHARED) if SHARED is not None else [])
    record_property("shared_cases", SHARED is not None)
    asked = [(address, file) for file in (*whole, *crafted(rng)) for address in PARTS]
    asked += [(rng.choice(list(PARTS)), each) for file in whole for each in damaged(file, rng)]
    program = Program(bundle_path, tmp_path)
    with program.running() as (process, client):
        before = 0
        for n, (address, file) in enumerate(asked):
            check(send(client, address, file), str(tmp_path), (address, file[0]))
            assert process.poll() is None
            if n % 40 == 0:
                assert client.get("/health/ready").status_code == 200
                wait_for_all(client)
            if n == 120:
                before = memory_of(process.pid)
        jobs = wait_for_all(client)
        assert {job["state"] for job in jobs.values()} == {"done"}, jobs
        assert all(job["num_starts"] == 1 for job in jobs.values())
        grown = memory_of(process.pid) - before
        answers = answers_of(client)
        assert client.get("/health/ready").status_code == 200
        found = client.post(f"{API}/search", json={"text": "a dog"}).json()["hits"]
    assert len(found) >= 8  # the whole ones among them
    assert max(answers) < 500, answers
    assert grown < MORE_BYTES, grown
    assert "Traceback" not in program.log.read_text()
    assert not list((program.data / "queries").iterdir())


HEAD = b"--edge\r\nContent-Disposition: form-data; name="
FILE = HEAD + b"PART; filename=a\r\n\r\nx\r\n"
OPTIONS = HEAD + b"options\r\n\r\n"
END = b"\r\n--edge--\r\n"


@pytest.mark.parametrize("address", PARTS)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--edge",
        b"--edge--\r\n",
        b"--edge\r\n\r\n" + END,
        FILE.replace(b"edge", b"other") + b"--other--\r\n",
        b"--edge\r\nContent-Disposition: form-data\r\n\r\nx" + END,
        b"--edge\r\nContent-Disposition: attachment; name=file; filename=a\r\n\r\n" + END,
        HEAD + b"PART; filename=a\r\n\r\nhalf",
        HEAD + b"PART; filename=\xff\xfe\r\n\r\n" + END,
        HEAD + b"PART; filename*=utf-8''%ff\r\n\r\nx\r\n--edge",
        HEAD + b"PART; filename=" + b"a" * 4000 + b"\r\n\r\nx" + END,
        b"--edge\r\nX: " + b"y" * 70_000 + b"\r\n\r\nx" + END,
        b"--edge\r\n" + b"X: y\r\n" * 3000 + b"\r\nx" + END,
        OPTIONS + b"\xff\xfe" + END,
        FILE + OPTIONS + b"{" + END,
        FILE + OPTIONS + b"[" * 100_000 + END,
        FILE + OPTIONS + b'{"\\ud800": 1}' + END,
        FILE + HEAD + b"other\r\n\r\nx" + END,
    ],
)
def test_malformed_forms(api: TestClient, address: str, body: bytes) -> None:
    answer = api.post(
        f"{API}/{address}",
        content=body.replace(b"PART", PARTS[address].encode()),
        headers={"Content-Type": "multipart/form-data; boundary=edge"},
    )
    assert answer.status_code in (400, 413, 415, 422), answer.text
    assert set(answer.json()["error"]) == {"kind", "message", "request_id"}
