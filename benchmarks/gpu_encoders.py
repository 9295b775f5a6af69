"""Encoders with inputs on the GPU, and searches end to end there; makes the bundle for both.

    python -m benchmarks.gpu_encoders BUNDLE --make
    python -m benchmarks.gpu_encoders BUNDLE --output FOLDER
    python -m benchmarks.gpu_encoders BUNDLE --output FOLDER --search 1000000

``python -m benchmarks.gpu_session`` calls it. ``xclip-deploy bench`` measures the encoders with
inputs in host memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scan import unit
from benchmarks.setting import TEXT, make_bundle, make_checkpoint, model_config
from xclip_deploy import Bundle, GalleryVideo, Retriever
from xclip_deploy.runtime.features import VideoFeatures
from xclip_deploy.runtime.files import replace_text
from xclip_deploy.runtime.manifest import Graph
from xclip_deploy.runtime.sessions import Placement, SessionOptions
from xclip_deploy.runtime.sessions.onnx_runtime import why_no_provider
from xclip_deploy.runtime.sessions.onnx_session import (
    CUDA_PROVIDER,
    FP16,
    OnnxRuntimeSession,
    import_onnxruntime,
)

BLOCK = 20_000
"""Videos that are added at a time."""


def timed(run: Callable[[], object], rounds: int) -> dict[str, Any]:
    """Call a function, twice unmeasured, and return its median and all times, milliseconds."""
    samples = []
    for turn in range(rounds + 2):
        start_s = time.perf_counter()
        run()
        if turn >= 2:
            samples.append((time.perf_counter() - start_s) * 1e3)
    return {"median_ms": statistics.median(samples), "samples_ms": samples}


def device_bound(bundle: Bundle, videos: int, rounds: int, device: str) -> list[dict[str, Any]]:
    """Time the video encoder with inputs and outputs on the GPU, fused and as exported."""
    library = import_onnxruntime()
    config, rng = bundle.manifest.model, np.random.default_rng(0)
    side = config.vision.image_size
    inputs = {
        "frames": rng.integers(0, 256, (videos, config.max_frames, side, side, 3), dtype=np.uint8),
        "num_frames": np.full(videos, config.max_frames, np.int32),
    }
    placement = Placement("onnxruntime", "cpu" if device == "cpu" else "cuda", FP16)
    has_fused = Graph.VIDEO_ENCODER in bundle.manifest.fused_graphs.get(FP16.graphs, {})
    entries = []
    for is_fused in (False, True) if has_fused else (False,):
        session = OnnxRuntimeSession(bundle, Graph.VIDEO_ENCODER, placement, is_fused=is_fused)
        binding = session._session.io_binding()
        values = {
            name: library.OrtValue.ortvalue_from_numpy(array, device, 0)
            for name, array in inputs.items()
        }
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for output in session._session.get_outputs():
            binding.bind_output(output.name, device)

        def run(session: OnnxRuntimeSession = session, binding: Any = binding) -> None:  # noqa: ANN401
            session._session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        found = timed(run, rounds)
        rate = videos / found["median_ms"] * 1e3
        entries.append({"fused": is_fused, "videos": videos, "videos_a_second": rate, **found})
        session.close()
    return entries


def end_to_end(bundle: Bundle, videos: int, rounds: int, options: SessionOptions) -> dict[str, Any]:
    """Time searches from a text to ten hits among random videos that stay on the GPU.

    The second half is added to a gallery that is resident already.
    """
    config, rng = bundle.manifest.model, np.random.default_rng(1)
    block = min(BLOCK, videos)
    shape = (block, config.max_frames, config.embed_dim)
    frames = unit(rng.standard_normal(shape, np.float32)).astype(np.float16)
    counts = np.full(block, config.max_frames, np.int32)
    features = VideoFeatures(unit(frames.mean(1)).astype(np.float16), frames, counts)
    times = tuple(map(float, range(config.max_frames)))
    found: dict[str, Any] = {"videos": videos}
    with Retriever(bundle, session=options) as retriever:
        start_s = time.perf_counter()
        for start in range(0, videos, block):
            count = min(block, videos - start)
            given = [GalleryVideo(id=f"v{start + n}", frame_times_s=times) for n in range(count)]
            retriever.add_features(given, features[:count])
            if start <= videos // 2 < start + block:
                found["added_half_s"] = time.perf_counter() - start_s
                retriever.warm_up()
                start_s = time.perf_counter()
        found["added_rest_s"] = time.perf_counter() - start_s
        start_s = time.perf_counter()
        retriever.warm_up()
        found["warm_up_s"] = time.perf_counter() - start_s
        for name, exact in (("exact", True), ("as planned", None)):
            found[name] = timed(partial(retriever.search, TEXT, 10, exact=exact), rounds)
        hits = retriever.search(TEXT, 10)
        found["reason"], found["placement"] = hits.reason, retriever.model.placement.reason
        found["residence"] = retriever.residence.describe()
    return found


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    found = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    found.add_argument("bundle", type=Path)
    found.add_argument("--make", action="store_true", help="export the bundle, and measure nothing")
    found.add_argument("--output", type=Path, help="folder of results")
    found.add_argument("--search", type=int, help="search among so many videos instead")
    found.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    found.add_argument("--toy", action="store_true", help="try it with a toy model")
    return found


def main() -> None:
    """Make the bundle, or measure with it."""
    options = parser().parse_args()
    if options.make:
        checkpoint = options.bundle.with_name("checkpoint.pt")
        make_bundle(options.bundle, make_checkpoint(checkpoint, model_config(options.toy), seed=0))
        return
    missing = None if options.device == "cpu" else why_no_provider(CUDA_PROVIDER)
    if missing is not None:
        raise SystemExit(f"nothing was measured: {missing}")
    bundle, rounds = Bundle.open(options.bundle), 3 if options.toy else 20
    if options.search is None:
        batches = (1, 2) if options.toy else (1, 8, 16, 32)
        name = "device-bound.json"
        content: object = [
            entry
            for batch in batches
            for entry in device_bound(bundle, batch, rounds, options.device)
        ]
    else:
        name = "end-to-end.json"
        session = (
            SessionOptions(device=options.device)
            if options.device == "cpu"
            else SessionOptions(resident_gallery=True)
        )
        content = end_to_end(bundle, options.search, rounds, session)
    text = json.dumps(content, indent=1) + "\n"
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        replace_text(options.output / name, text)
    print(text)


if __name__ == "__main__":
    main()
