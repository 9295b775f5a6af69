"""Padded frames are not encoded, and windows that overlap encode each frame once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from xclip_deploy import Bundle, DeployedModel, VideoFeatures
from xclip_deploy.cli.program import cli
from xclip_deploy.errors import BundleIntegrityError, InvalidArgumentError
from xclip_deploy.runtime.indexing.reuse import FrameReuse, Window, frame_reuse
from xclip_deploy.runtime.manifest import Manifest, file_records
from xclip_deploy.runtime.sessions import SessionOptions
from xclip_deploy.runtime.sessions.openvino.backend import why_no_bf16, why_no_openvino
from xclip_deploy.runtime.valid_frames import ValidFrameEncoder

CPU = SessionOptions(device="cpu", precision="fp32", threads=1)
FRAMES, SIZE, DIM = 12, 64, 64  # of the tiny model
Pixels = npt.NDArray[np.uint8]
missing = why_no_openvino() or why_no_bf16()


@pytest.fixture(scope="module")
def model(bundle: Bundle) -> Iterator[DeployedModel]:
    with DeployedModel(bundle, CPU, max_batch=3) as opened:
        yield opened


@pytest.fixture(scope="module")
def whole(bundle: Bundle) -> Iterator[DeployedModel]:
    """The same model, which runs ``video_encoder``."""
    with DeployedModel(bundle.without_video_parts(), CPU, max_batch=3) as opened:
        yield opened


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of frames in each run of ``frame_encoder``."""
    counts: list[int] = []
    embed = ValidFrameEncoder.embed

    def counted(self: ValidFrameEncoder, frames: Pixels) -> npt.NDArray[np.float32]:
        counts.append(len(frames))
        return embed(self, frames)

    monkeypatch.setattr(ValidFrameEncoder, "embed", counted)
    return counts


def pictures(count: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def same(found: VideoFeatures, expected: VideoFeatures, tolerance: float = 1e-6) -> None:
    for name, array in vars(expected).items():
        assert getattr(found, name).dtype == array.dtype
        np.testing.assert_allclose(getattr(found, name), array, rtol=0, atol=tolerance)


@settings(max_examples=15)
@given(counts=st.lists(st.integers(1, FRAMES), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_the_same_features_whatever_the_lengths(
    model: DeployedModel, whole: DeployedModel, counts: list[int], seed: int
) -> None:
    frames = pictures(len(counts) * FRAMES, seed).reshape(len(counts), FRAMES, SIZE, SIZE, 3)
    num_frames = np.array(counts)
    expected = whole.encode_frames(frames, num_frames)
    same(model.encode_frames(frames, num_frames), expected)
    videos = [row[:count] for row, count in zip(frames, counts, strict=True)]
    same(model.encode_videos(videos), expected)


def test_padding_is_not_encoded(model: DeployedModel, encoded: list[int]) -> None:
    counts = [1, 12, 3, 5, 2]
    model.encode_videos([pictures(count) for count in counts])
    assert encoded == [1 + 12 + 3, 5 + 2], "two runs of at most three videos"
    encoded.clear()
    frames = pictures(2 * FRAMES).reshape(2, FRAMES, SIZE, SIZE, 3)
    model.encode_frames(frames, np.array([4, 7]))
    assert encoded == [4 + 7]


def test_no_videos(model: DeployedModel) -> None:
    found = model.encode_videos([])
    assert found.frame_features.shape == (0, FRAMES, DIM)


def test_frames_apart(model: DeployedModel, whole: DeployedModel, encoded: list[int]) -> None:
    frames = pictures(50)
    raw = model.embed_frames(frames)
    assert raw.shape == (50, DIM)
    assert encoded == [36, 14], "runs of at most three videos' frames"
    padded = np.full((2, FRAMES, DIM), np.nan, np.float32)
    padded[0, :12], padded[1, :5] = raw[3:15], raw[40:45]
    found = model.combine_frames(padded, np.array([12, 5]))
    same(found, whole.encode_videos([frames[3:15], frames[40:45]]))


def test_a_model_without_halves_says_so(whole: DeployedModel) -> None:
    assert not whole.encodes_valid_frames
    with pytest.raises(InvalidArgumentError, match=r"expected a bundle with frame_encoder\.onnx"):
        whole.embed_frames(pictures(1))


def test_what_runs_is_named(model: DeployedModel, whole: DeployedModel) -> None:
    others = {"fp32/text_encoder.onnx", "fp32/text_encoder.onnx.data", "fp32/scorer.onnx"}
    others.add("fp32/video_encoder.onnx.data")
    halves = {"fp32/frame_encoder.onnx", "fp32/temporal_head.onnx"}
    assert set(model.artefacts()) == others | halves
    assert set(whole.artefacts()) == others | {"fp32/video_encoder.onnx"}


def test_inspect_shows_the_halves(bundle_path: Path) -> None:
    done = CliRunner().invoke(cli, ["inspect", str(bundle_path)])
    assert done.exit_code == 0, done.output
    note = "frame_encoder and temporal_head are halves of video_encoder, whose weights they share"
    assert note in done.stdout
    assert "  frame_raw " in done.stdout
    # The size of the whole counts its weights.
    size = next(line.split() for line in done.stdout.splitlines() if line.startswith("video_enc"))
    assert float(size[1]) > 3


# Windows that overlap


def test_windows_encode_each_frame_once(
    model: DeployedModel, whole: DeployedModel, encoded: list[int]
) -> None:
    """With a temporal head, which mixes the frames of each window."""
    frames = pictures(40)
    windows = [Window(frames[s : s + 12], tuple(range(s, s + 12))) for s in range(0, 28, 4)]
    windows.append(Window(frames[28:35], tuple(range(28, 35))))
    windows.append(Window(frames[:2]))  # another file
    reuse = frame_reuse(model)
    assert isinstance(reuse, FrameReuse)
    for part in (windows[:3], windows[3:4], windows[4:]):
        expected = whole.encode_videos([window.frames for window in part])
        same(reuse.encode(part), expected)
    assert reuse.num_encoded == sum(encoded) == 36 + 2
    assert frame_reuse(whole) is None, "each window is encoded by itself"


# Bundles without halves, and damaged ones


def rewrite(path: Path, manifest: Manifest, **changes: Any) -> None:
    """Write the manifest anew, with the hashes of the files that are there."""
    (path / "manifest.json").unlink()
    manifest = manifest.model_copy(update={**changes, "files": file_records(path)})
    (path / "manifest.json").write_bytes(manifest.to_json())


def test_a_bundle_of_before(bundle: Bundle, bundle_copy: Path, model: DeployedModel) -> None:
    manifest = bundle.manifest
    for precision in ("fp32", "fp16"):
        graph = onnx.load(str(bundle_copy / precision / "video_encoder.onnx"))
        for name in ("video_encoder.onnx", "video_encoder.onnx.data"):
            (bundle_copy / precision / name).unlink()
        for name in ("frame_encoder.onnx", "temporal_head.onnx"):
            (bundle_copy / precision / name).unlink()
        onnx.save(graph, str(bundle_copy / precision / "video_encoder.onnx"))
        text = onnx.load(str(bundle_copy / precision / "text_encoder.onnx"))
        (bundle_copy / precision / "text_encoder.onnx.data").unlink()
        onnx.save(text, str(bundle_copy / precision / "text_encoder.onnx"))
        for fused in (bundle_copy / precision).glob("*.fused.onnx"):
            fused.unlink()
    rewrite(bundle_copy, manifest, video_parts={}, fused_graphs={})
    content = json.loads((bundle_copy / "manifest.json").read_text())
    assert "video_parts" not in content
    assert "fused_graphs" not in content
    videos = [pictures(5), pictures(12)]
    with DeployedModel(bundle_copy, CPU) as old:
        assert not old.encodes_valid_frames
        assert "fp32/video_encoder.onnx" in old.artefacts()
        same(old.encode_videos(videos), model.encode_videos(videos))


@pytest.mark.parametrize(
    "name", ["frame_encoder.onnx", "temporal_head.onnx", "video_encoder.onnx.data"]
)
def test_damage_is_found(bundle_copy: Path, name: str) -> None:
    path = bundle_copy / "fp32" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with (
        DeployedModel(bundle_copy, CPU) as damaged,
        pytest.raises(BundleIntegrityError, match=f"{name} was altered"),
    ):
        damaged.encode_videos([pictures(1)])
    path.unlink()
    with pytest.raises(BundleIntegrityError, match=f"{name} is missing"):
        Bundle.open(bundle_copy)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda parts: parts["fp32"].pop("temporal_head"), "fp32 lacks temporal_head"),
        (lambda parts: parts.update(int8=parts["fp32"]), "graphs lack int8"),
        (
            lambda parts: parts["fp16"]["frame_encoder"].update(weights=["gone.data"]),
            "gone.data is not among its files",
        ),
    ],
)
def test_a_manifest_with_odd_halves(bundle: Bundle, change: Any, expected: str) -> None:
    content = json.loads(bundle.manifest.to_json())
    del content["checksum"]
    change(content["video_parts"])
    with pytest.raises(ValidationError, match=expected):
        Manifest.model_validate(content)


# OpenVINO


@pytest.mark.skipif(missing is not None, reason=str(missing))
def test_openvino_encodes_valid_frames_alone(
    bundle: Bundle, whole: DeployedModel, encoded: list[int]
) -> None:
    videos = [pictures(count) for count in (3, 1, 12)]
    with DeployedModel(bundle, SessionOptions(backend="openvino")) as opened:
        assert "fp32/frame_encoder.onnx" in opened.artefacts()
        found = opened.encode_videos(videos)
    assert encoded == [16]
    same(found, whole.encode_videos(videos), tolerance=1e-2)
