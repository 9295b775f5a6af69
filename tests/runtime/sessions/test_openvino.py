"""OpenVINO in BF16: where it is chosen, what it computes, and the graphs that it keeps compiled."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xclip_deploy import Bundle, DeployedModel
from xclip_deploy.errors import BundleIntegrityError, SessionError
from xclip_deploy.runtime.manifest import Graph, Precision
from xclip_deploy.runtime.sessions import SessionOptions, place
from xclip_deploy.runtime.sessions.openvino import backend as openvino_backend
from xclip_deploy.runtime.sessions.openvino import session as openvino_session
from xclip_deploy.runtime.sessions.openvino.backend import why_no_bf16, why_no_openvino
from xclip_deploy.runtime.sessions.openvino.compiled import CACHE_VARIABLE, CompiledCache
from xclip_deploy.runtime.sessions.openvino.wide_nodes import narrow_norms, read_marked

SHA = "ab" * 32
missing = why_no_openvino() or why_no_bf16()
runs = pytest.mark.skipif(missing is not None, reason=str(missing))


@pytest.fixture(autouse=True)
def cache_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "openvino"


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``auto`` take the backend for the tests' small model."""
    monkeypatch.setattr(openvino_backend, "_LEAST_WIDTH", 0)


@pytest.fixture
def model(bundle: Bundle) -> Iterator[DeployedModel]:
    with DeployedModel(bundle, SessionOptions(backend="openvino")) as opened:
        yield opened


# Where it is chosen


@pytest.mark.parametrize(
    ("text", "has_bf16"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 amx_int8\n", True),
        ("processor: 0\nflags : fpu amx_bf16\n", True),
        ("flags : fpu avx2 avx512f avx512_vnni\n", False),
        ("Features : fp asimd bf16\n", False),  # ARM is not measured
        ("", False),
    ],
)
def test_cpus_with_bf16(tmp_path: Path, text: str, has_bf16: bool) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(text)
    assert (why_no_bf16(info) is None) is has_bf16


def test_a_machine_without_cpuinfo(tmp_path: Path) -> None:
    assert "no BF16" in str(why_no_bf16(tmp_path / "none"))


def test_small_models_stay_with_onnx_runtime(bundle: Bundle) -> None:
    placement = place(SessionOptions(device="cpu"), bundle).placement
    assert placement.backend == "onnxruntime"
    assert placement.reason == "cpu was asked for"


@runs
def test_auto_takes_it_where_it_gains(bundle: Bundle, wide: None) -> None:
    placement = place(SessionOptions(device="cpu"), bundle).placement
    assert placement.summary == "mixed-bf16 by openvino on cpu"
    assert placement.reason == "cpu was asked for: the CPU has BF16"
    # FP32 that is asked for is FP32.
    placement = place(SessionOptions(device="cpu", precision="fp32"), bundle).placement
    assert placement.backend == "onnxruntime"


def test_cpus_without_bf16_pass_it_over(
    bundle: Bundle, wide: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "this CPU has no BF16 products"
    monkeypatch.setattr(openvino_backend, "why_no_bf16", lambda: reason)
    placement = place(SessionOptions(device="cpu"), bundle).placement
    assert placement.backend == "onnxruntime"
    assert placement.reason == "cpu was asked for"
    monkeypatch.setattr(openvino_backend, "import_openvino", lambda: None)
    with pytest.raises(SessionError, match="backend openvino was asked for, but this CPU has no"):
        place(SessionOptions(backend="openvino"), bundle)


def test_it_is_named_where_it_would_gain(
    bundle: Bundle, wide: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_backend, "why_no_bf16", lambda: None)
    hint = "OpenVINO is not installed; run: pip install 'xclip-deploy[openvino]'"
    monkeypatch.setattr(openvino_backend, "why_no_openvino", lambda: hint)
    assert hint in place(SessionOptions(device="cpu"), bundle).placement.reason


# What it computes


@runs
def test_features_are_those_of_fp32_but_for_rounding(bundle: Bundle, model: DeployedModel) -> None:
    random = np.random.default_rng(3)
    config = bundle.manifest.model
    size = config.vision.image_size
    shape = (3, config.max_frames, size, size, 3)
    frames = random.integers(0, 256, shape, dtype=np.uint8)
    counts = np.array([config.max_frames, 1, 2])
    texts = ["a dog on a leash", "two people dance", "rain"]
    with DeployedModel(bundle, SessionOptions(device="cpu", precision="fp32")) as exact:
        wanted = {**vars(exact.encode_texts(texts)), **vars(exact.encode_frames(frames, counts))}
    found_texts, found_videos = model.encode_texts(texts), model.encode_frames(frames, counts)
    found = {**vars(found_texts), **vars(found_videos)}
    for name in ("sentence_features", "word_features", "video_features", "frame_features"):
        cosines = (wanted[name] * found[name]).sum(-1)
        assert cosines.min() > 0.999, name
        assert np.abs(wanted[name] - found[name]).max() > 0, f"{name} is not in BF16"
    scores = model.score(found_texts, found_videos)
    assert scores.logits.shape == (3, 3)
    half = type(found_videos)(
        found_videos.video_features.astype(np.float16),
        found_videos.frame_features.astype(np.float16),
        found_videos.num_frames,
    )
    np.testing.assert_allclose(model.score(found_texts, half).logits, scores.logits, atol=0.2)


@runs
@pytest.mark.parametrize("graph", [Graph.VIDEO_ENCODER, Graph.TEXT_ENCODER])
def test_sums_between_products_stay_in_fp32(bundle: Bundle, graph: Graph) -> None:
    import openvino

    path = bundle.graph_path(graph, Precision.FP32)
    core = openvino.Core()
    bf16 = {"INFERENCE_PRECISION_HINT": "bf16"}
    plain = core.compile_model(core.read_model(str(path)), "CPU", bf16)
    with read_marked(core, path) as model:
        marked = core.compile_model(model, "CPU", bf16)
    assert narrow_norms(plain) > 0
    assert narrow_norms(marked) == 0
    assert products(marked) == products(plain) == {"bf16"}, "products gain by BF16"


def products(compiled: Any) -> set[str]:
    """Return the precisions in which a compiled graph multiplies by weights."""
    found = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    return {
        info["runtimePrecision"].astype(str)
        for info in found
        if info["layerType"].astype(str) == "FullyConnected"
    }


@runs
def test_an_openvino_that_ignores_the_marks(
    bundle: Bundle, model: DeployedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def read_plain(core: Any, path: Path) -> Iterator[Any]:
        yield core.read_model(str(path))

    monkeypatch.setattr(openvino_session, "read_marked", read_plain)
    with pytest.raises(SessionError, match=r"layer norms of text_encoder .* pip install --upgrade"):
        model.encode_texts(["rain"])


@runs
def test_no_room_for_the_marked_copy(
    model: DeployedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(SessionError, match=r"OpenVINO cannot load .*none"):
        model.encode_texts(["rain"])


@pytest.mark.parametrize(
    ("width", "size"),
    [(768, 256), (512, 256), (1024, 256), (384, 192), (96, 32), (64, 32), (48, 48)],
)
def test_channels_that_share_a_scale(bundle: Bundle, width: int, size: int) -> None:
    manifest = bundle.manifest
    text = manifest.model.text.model_copy(update={"width": width})
    config = manifest.model.model_copy(update={"text": text})
    other = replace(bundle, manifest=manifest.model_copy(update={"model": config}))
    assert openvino_session._group_size(other, Graph.TEXT_ENCODER) == size


@runs
def test_small_models_run_where_they_are_named(bundle: Bundle) -> None:
    options = SessionOptions(device="cpu", precision="mixed-bf16")
    assert place(options, bundle).placement.summary == "mixed-bf16 by openvino on cpu"


def test_int8_weights_are_for_openvino(bundle: Bundle) -> None:
    options = SessionOptions(backend="onnxruntime", precision="int8-weights")
    with pytest.raises(SessionError, match="which onnxruntime does not run"):
        place(options, bundle)


@runs
def test_a_bundle_without_int8_weights(bundle: Bundle) -> None:
    with pytest.raises(SessionError, match="int8-weights was asked for; the bundle has"):
        place(SessionOptions(device="cpu", precision="int8-weights"), bundle)


@runs
def test_outputs_are_the_callers(model: DeployedModel) -> None:
    session = model._sessions.of(Graph.TEXT_ENCODER)
    ids = model.tokenizer.encode(["a dog"], model.config.max_words)
    first = session.run({"token_ids": ids})
    kept = first["sentence_features"].copy()
    other = model.tokenizer.encode(["rain falls on a street"], model.config.max_words)
    session.run({"token_ids": other})
    np.testing.assert_array_equal(first["sentence_features"], kept)
    session.close()
    session.close()
    with pytest.raises(SessionError, match="is closed"):
        session.run({"token_ids": ids})


# Compiled graphs


def encoded(bundle: Bundle) -> Any:
    with DeployedModel(bundle, SessionOptions(backend="openvino")) as opened:
        return opened.encode_texts(["a dog"]).sentence_features


@runs
def test_a_second_process_finds_the_compiled_graph(bundle: Bundle, cache_root: Path) -> None:
    def blobs() -> dict[Path, int]:
        return {path: path.stat().st_ino for path in cache_root.rglob("*.compiled")}

    first = encoded(bundle)
    found = blobs()
    assert len(found) == 1
    np.testing.assert_array_equal(encoded(bundle), first)
    assert blobs() == found
    assert cache_root.stat().st_mode & 0o077 == 0


@runs
@pytest.mark.parametrize("damage", ["changed", "cut", "no checksums", "longer", "empty"])
def test_a_damaged_graph_is_compiled_anew(
    bundle: Bundle, cache_root: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """OpenVINO itself loads it without a word."""
    first = encoded(bundle)
    (path,) = cache_root.iterdir()
    whole = path.read_bytes()
    content = bytearray(whole)
    if damage == "changed":
        content[-len(content) // 64 :: 7] = bytes(len(content[-len(content) // 64 :: 7]))
    elif damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "no checksums":
        content[: 1 << 16] = b"{}".ljust(1 << 16)
    elif damage == "longer":
        content += bytes(1)
    else:
        content = bytearray()
    path.write_bytes(content)
    np.testing.assert_array_equal(encoded(bundle), first)
    assert "it is made anew" in caplog.text
    (anew,) = cache_root.iterdir()
    assert anew.stat().st_size > len(whole) // 2  # names of generated nodes differ
    caplog.clear()
    np.testing.assert_array_equal(encoded(bundle), first)
    assert caplog.text == ""


@runs
def test_a_graph_that_openvino_refuses_is_made_anew(
    bundle: Bundle, cache_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its checksums are right, as of a file that another release wrote under the same name."""
    first = encoded(bundle)
    (path,) = cache_root.iterdir()
    CompiledCache(cache_root).put(path.stem, memoryview(b"no graph"))
    np.testing.assert_array_equal(encoded(bundle), first)
    assert "cannot be loaded, so it is made anew" in caplog.text


@runs
def test_the_graph_itself_is_not_read_where_a_compiled_one_is(
    bundle: Bundle, tmp_path: Path
) -> None:
    """And an altered graph without a compiled one is refused."""
    copy = tmp_path / "bundle"
    shutil.copytree(bundle.path, copy)
    first = encoded(Bundle.open(copy))
    (copy / "fp32" / "text_encoder.onnx").write_bytes(
        bytes((copy / "fp32" / "text_encoder.onnx").stat().st_size)
    )
    np.testing.assert_array_equal(encoded(Bundle.open(copy)), first)
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(BundleIntegrityError, match="was altered"):
        encoded(Bundle.open(copy))


def fill(cache: CompiledCache, sha256: str) -> Path:
    assert cache.root is not None
    name = cache.name_of(sha256, "1.0 cpu", {"THREADS": 2})
    cache.put(name, memoryview(b"x"))
    found = cache.find(name)
    assert found is not None
    assert found.tobytes() == b"x"
    return cache.root / f"{name}.compiled"


def test_nothing_is_cached_where_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, "")
    cache = CompiledCache.of_user()
    cache.put(SHA, memoryview(b"x"))
    assert cache.root is None
    assert cache.find(SHA) is None


def test_a_cache_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    cache = CompiledCache(tmp_path / "file" / "openvino")
    cache.put(SHA, memoryview(b"x"))
    assert cache.find(SHA) is None
    assert "graphs are compiled at every start" in caplog.text


def test_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert CompiledCache.of_user().root == tmp_path / "xclip-deploy" / "openvino"


def test_old_graphs_are_removed(tmp_path: Path) -> None:
    cache = CompiledCache(tmp_path / "openvino")
    files = []
    for n in range(12):
        file = fill(cache, f"{n:064x}")
        files.append(file)
        day_ago = time.time() - 86400 + n
        os.utime(file, (day_ago, day_ago))
    newest = fill(cache, "f" * 64)
    left = [file for file in files if file.is_file()]
    assert left == files[-7:]
    assert newest.is_file()
