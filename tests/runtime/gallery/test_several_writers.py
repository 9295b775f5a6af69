"""Three processes that write one gallery at a URI at the same time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from gallery_samples import DIM, FRAMES, MODEL, content_of, sample

from xclip_deploy.runtime.gallery.lance_opening import open_store

PACKAGES = Path(__file__).parents[2] / "packages"
WRITER = f"""
import sys
sys.path.insert(0, {str(PACKAGES)!r})
from gallery_samples import DIM, FRAMES, MODEL, sample
from xclip_deploy.runtime.gallery.lance_opening import open_store
uri, name, rounds = sys.argv[1:]
print("begin", flush=True)
sys.stdin.readline()
store = open_store(uri, MODEL, DIM, FRAMES, create=True)
for n in range(int(rounds)):
    # The same four videos as the others, and one of its own; a column, in the first round.
    ids = [f"v{{4 * n + k}}" for k in range(4)] + [f"{{name}}-{{n}}"]
    store.refresh()
    store.put(*sample(ids, n, camera=n), replace=True)
"""
WRITERS = ("x", "y", "z")


@pytest.mark.parametrize(
    ("scheme", "is_indexed", "rounds"),
    [
        # What LanceDB does with object storage, on a local disk: no lock, but puts that fail
        # where the file is there.
        ("file-object-store", False, 5),
        pytest.param("file-object-store", False, 12, marks=pytest.mark.slow),
        pytest.param("file-object-store", True, 12, marks=pytest.mark.slow),
        # A directory, whose lock admits one writer at a time.
        pytest.param("file", False, 12, marks=pytest.mark.slow),
    ],
)
def test_three_writers_keep_each_video_once(
    tmp_path: Path, scheme: str, is_indexed: bool, rounds: int
) -> None:
    uri = f"{scheme}://{tmp_path}/gallery"
    expected = {f"v{n}" for n in range(4 * rounds)}
    expected |= {f"{name}-{n}" for name in WRITERS for n in range(rounds)}
    if is_indexed:  # merges go by the index of ids then
        store = open_store(uri, MODEL, DIM, FRAMES, create=True)
        store.put(*sample(["before"], camera=0), replace=False)
        store.optimize(lambda _what: None)
        expected.add("before")
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, uri, name, str(rounds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in WRITERS
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "begin\n"
    for writer in writers:  # all at once
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    errors = [writer.communicate(timeout=120)[1][-2000:] for writer in writers]
    assert errors == [""] * 3
    snapshot = open_store(uri, MODEL, DIM, FRAMES, create=False).snapshot()
    assert len(snapshot) == len(expected)
    assert set(content_of(snapshot)) == expected
