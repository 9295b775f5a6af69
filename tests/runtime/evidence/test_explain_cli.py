from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from xclip_deploy import Bundle, Retriever
from xclip_deploy.cli.program import cli
from xclip_deploy.errors import GalleryError, InvalidArgumentError, MissingExtraError

QUERY = "a man is driving a car"


@pytest.fixture(scope="module")
def gallery_path(filled: Retriever, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("explain") / "gallery"
    filled.save(path)
    return path


@pytest.fixture
def run(bundle_path: Path, gallery_path: Path, tmp_path: Path, monkeypatch: Any) -> Any:
    monkeypatch.chdir(tmp_path)

    def call(*words: str, gallery: Path = gallery_path) -> Result:
        options = ["--bundle", str(bundle_path), "--gallery", str(gallery), "--device", "cpu"]
        return CliRunner().invoke(cli, ["explain", *words, *options], catch_exceptions=True)

    return call


def test_a_picture_and_a_sentence(run: Any, filled: Retriever, tmp_path: Path) -> None:
    result = run(QUERY, "dog")
    assert result.exit_code == 0, result.output
    found = filled.explain(QUERY, "dog")
    rank = next(hit.rank for hit in filled.search(QUERY) if hit.id == "dog")
    lines = result.stdout.splitlines()
    assert lines[0] == str(found)
    assert lines[-1] == "wrote explain.png"
    assert (tmp_path / "explain.png").read_bytes().startswith(b"\x89PNG")
    assert lines[2].endswith(f": score {found.score:.2f}, rank {rank} of 3 videos")
    rows = {line.split()[0]: line.split()[1:] for line in lines[5:-2]}
    for word in found.words:
        if word.score_without is not None and word.text != "a":
            change = word.score_without - found.score
            assert rows[word.text][:2] == [f"{word.contribution:+.2f}", f"{change:+.2f}"]


def test_words_without_matplotlib(run: Any, tmp_path: Path, monkeypatch: Any) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    result = run(QUERY, "dog")
    assert result.exit_code == 0, result.output
    assert "driving" in result.stdout
    assert "run: pip install 'xclip-deploy[plot]'" in result.stdout
    assert list(tmp_path.iterdir()) == []
    asked = run(QUERY, "dog", "-o", "a.png").exception
    assert isinstance(asked, MissingExtraError)


def test_a_video_by_its_file_name(run: Any, filled: Retriever) -> None:
    """The ids of this gallery are no file names, but its videos have files."""
    result = run(QUERY, "sam2_dog.mp4", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["video_id"] == "dog"
    missing = run(QUERY, "sam2_dgo.mp4").exception
    assert isinstance(missing, GalleryError)
    assert "(did you mean 'sam2_dog.mp4'?)" in str(missing)


def test_a_file_name_of_two_videos(
    run: Any, bundle: Bundle, filled: Retriever, tmp_path: Path
) -> None:
    held = filled.gallery.snapshot().held()
    assert held is not None
    first = next(filled.gallery.snapshot().listing())
    videos = [
        first.model_copy(update={"id": str(tmp_path / name / "clip.mp4"), "content_sha256": None})
        for name in ("one", "two")
    ]
    with Retriever(bundle, device="cpu") as retriever:
        retriever.add_features(videos, held[1][[0, 0]])
        retriever.save(tmp_path / "gallery")
    found = run(QUERY, "clip.mp4", gallery=tmp_path / "gallery").exception
    assert isinstance(found, InvalidArgumentError)
    assert "names 2 videos" in str(found)


def test_the_best_hit_and_json(run: Any, filled: Retriever, tmp_path: Path) -> None:
    result = run(QUERY, "--json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    best = filled.search(QUERY, k=1)[0]
    assert content["video_id"] == best.id
    assert content["score"] == pytest.approx(best.score, abs=5e-5)
    assert list(tmp_path.iterdir()) == []


def test_two_videos(run: Any, tmp_path: Path) -> None:
    result = run(QUERY, "dog", "frog", "-o", "two.png", "--json")
    assert result.exit_code == 0, result.output
    assert "ranks above" in json.loads(result.stdout)["summary"]
    assert [path.name for path in tmp_path.iterdir()] == ["two.png"]


def test_a_video_by_its_file(
    run: Any, bundle: Bundle, filled: Retriever, clips: Path, tmp_path: Path
) -> None:
    """As `xclip-deploy search` prints it: relative, where the id is the absolute path."""
    clip = clips / "sam2_dog.mp4"
    snapshot = filled.gallery.snapshot()
    held = snapshot.held()
    assert held is not None
    with Retriever(bundle, device="cpu") as retriever:
        video = next(snapshot.listing()).model_copy(update={"id": str(clip)})
        retriever.add_features([video], held[1][:1])
        retriever.save(tmp_path / "gallery")
    result = run(QUERY, os.path.relpath(clip), "--json", gallery=tmp_path / "gallery")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["video_id"] == str(clip)


def test_wrong_use(run: Any, bundle: Bundle, tmp_path: Path) -> None:
    assert "found 3 videos" in run(QUERY, "dog", "frog", "walk").output
    missing = run(QUERY, "cat").exception
    assert isinstance(missing, GalleryError)
    assert "no video 'cat'" in str(missing)
    with Retriever(bundle, device="cpu") as retriever:
        retriever.save(tmp_path / "empty")
    empty = run(QUERY, gallery=tmp_path / "empty").exception
    assert isinstance(empty, GalleryError)
    assert "run: xclip-deploy index" in str(empty)
