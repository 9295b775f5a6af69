"""The exact scan of a gallery that stays on the GPU: milliseconds, and bytes a second.

    python -m benchmarks.scan --videos 100000 1000000 4000000

The model has random weights and the published shape (12 frames, 32 words, D 512), or is that of
``--bundle``. Kernels are the bundle's, or compiled for this GPU. The gallery repeats one block of
random videos. Times are end to end: from query embeddings in host memory to hits there. Without a
GPU, only the table by arithmetic is written.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.machine import Surroundings
from xclip_deploy.export.scan_kernels.compiling import Tuning, compile_kernel
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.cuda.driver_api import Driver, open_driver
from xclip_deploy.runtime.cuda.memory import DeviceArray, DeviceBuffer, DeviceMemory, PinnedBuffer
from xclip_deploy.runtime.cuda.runtime_api import open_cuda
from xclip_deploy.runtime.features import TextFeatures
from xclip_deploy.runtime.files import replace_text
from xclip_deploy.runtime.grains import GRAINS, PUBLISHED_GRAINS, Grain
from xclip_deploy.runtime.manifest import DType
from xclip_deploy.runtime.nvidia_driver import why_no_gpu
from xclip_deploy.runtime.resident.gpu_scan import GpuScan
from xclip_deploy.runtime.resident.kernel_loading import ScanKernel
from xclip_deploy.runtime.resident.kernel_set import (
    ARGUMENTS,
    Kernel,
    kernels_of,
)
from xclip_deploy.runtime.resident.scan import TEXTS_A_PASS, ScanArrays
from xclip_deploy.runtime.resident.shape import SENTENCE_COLUMNS, ScanShape
from xclip_deploy.runtime.scorer_weights import ScorerWeights

BLOCK = 20_000
"""Videos of the block that the gallery repeats."""
HITS = 10


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet."""

    name: str
    bytes_a_second: float
    flop_a_second: float
    """Rate of tensor cores: dense FP16 products that accumulate in FP32."""
    memory_bytes: float


GPUS = (
    Gpu("L4", 300e9, 121e12, 24e9),
    Gpu("A100 80 GB SXM", 2039e9, 312e12, 80e9),
    Gpu("RTX 4090", 1008e9, 165.2e12, 24e9),
    Gpu("H100 SXM", 3350e9, 989.4e12, 80e9),
    Gpu("H200", 4800e9, 989.4e12, 141e9),
)
_RESERVED_BYTES = 2e9
"""Memory that scores, queries and the driver take."""
PUBLISHED = ScanShape(
    embed_dim=512, max_frames=12, max_words=32, grains=PUBLISHED_GRAINS, mask_padding=False
)


def video_bytes(shape: ScanShape) -> int:
    """Return the size of one video's FP16 features, bytes."""
    return 2 * shape.embed_dim * (1 + shape.max_frames * shape.reads_frames)


def text_flop(shape: ScanShape, parts: int = 2) -> float:
    """Return the work of one text and one video in tensor cores, as FP16 operations.

    Padding counts, since tensor cores multiply it too. ``parts``: FP16 numbers of a word's factor.
    Attention multiplies numbers in two parts, which takes three products.
    """
    frames, words = shape.padded_frames, shape.padded_words
    columns = parts * words * any(GRAINS[grain].reads_words for grain in shape.grains)
    columns += SENTENCE_COLUMNS
    rows = frames * shape.reads_frames + 1
    products = 2.0 * shape.embed_dim * columns * rows
    attention = 0.0
    if Grain.VIDEO_WORD in shape.grains:
        attention += words**2
    if Grain.FRAME_WORD in shape.grains:
        # Words of each frame twice, frames of each word, and frames of 16 equal columns.
        attention += 2 * frames * words**2 + frames**2 * (words + 16)
    if Grain.FRAME_SENTENCE in shape.grains:
        attention += frames**2 * 16
    return products + 2 * 3 * attention


def cache_bytes(shape: ScanShape, rows: int = 128) -> float:
    """Return what one text reads from the GPU's cache for one video, bytes.

    Each program reads the text's factors, and its videos. ``rows``: frames or videos of a program.
    """
    words = any(GRAINS[grain].reads_words for grain in shape.grains)
    factors = 2 * shape.embed_dim * (2 * shape.padded_words * words + SENTENCE_COLUMNS)
    programs = 1 / rows
    if shape.reads_frames:
        programs += shape.padded_frames / rows
    return factors * programs + video_bytes(shape)


def peak_table(shape: ScanShape = PUBLISHED, videos: int = 1_000_000) -> str:
    """Return the least time of a scan on several GPUs, as Markdown. Nothing is measured."""
    size = video_bytes(shape) * videos
    work = text_flop(shape) * videos * TEXTS_A_PASS
    lines = [
        f"| GPU | memory, GB/s | read {size / 1e9:.1f} GB once, ms | tensor cores, TFLOP/s | "
        f"{work / 1e12:.0f} TFLOP for {TEXTS_A_PASS} texts, ms | videos that fit |",
        "|---|---|---|---|---|---|",
    ]
    for gpu in GPUS:
        fit = (gpu.memory_bytes - _RESERVED_BYTES) / video_bytes(shape) / 1e6
        least_ms = size / gpu.bytes_a_second * 1e3
        texts_ms = work / gpu.flop_a_second * 1e3
        lines.append(
            f"| {gpu.name} | {gpu.bytes_a_second / 1e9:,.0f} | {least_ms:.1f} | "
            f"{gpu.flop_a_second / 1e12:.0f} | {texts_ms:.0f} | {fit:.1f} million |"
        )
    return "\n".join(lines) + "\n"


def random_weights(shape: ScanShape, rng: np.random.Generator) -> ScorerWeights:
    """Return matrices near the identity, as trained models have."""
    sizes = {
        "embed": shape.embed_dim,
        "words": shape.max_words,
        "frames": shape.max_frames,
    }
    matrices = {
        name: (np.eye(sizes[axis]) + 0.02 * rng.standard_normal((sizes[axis],) * 2)).astype("f")
        for grain in shape.grains
        for name, axis in GRAINS[grain].matrices.items()
    }
    return ScorerWeights(2.6593, matrices)


def unit(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return vectors of length 1."""
    found: npt.NDArray[Any] = array / np.linalg.norm(array, axis=-1, keepdims=True)
    return found


def random_texts(shape: ScanShape, texts: int, rng: np.random.Generator) -> TextFeatures:
    """Return texts whose words are near their sentence."""
    sentences = unit(rng.standard_normal((texts, shape.embed_dim))).astype(np.float32)
    words = rng.standard_normal((texts, shape.max_words, shape.embed_dim)) * 0.03
    counts = np.full(texts, shape.max_words, np.int32)
    return TextFeatures(sentences, unit(words + sentences[:, None]).astype(np.float32), counts)


class Gallery:
    """Random videos in GPU memory."""

    def __init__(self, memory: DeviceMemory, shape: ScanShape, videos: int, block: int) -> None:
        self._memory = memory
        self._buffers: list[DeviceBuffer] = []
        rng = np.random.default_rng(1)
        block = min(block, videos)
        frames = unit(rng.standard_normal((block, shape.max_frames, shape.embed_dim), np.float32))
        whole = unit(frames.mean(1)).astype(np.float16)
        counts = np.full(block, shape.max_frames, np.int32)
        reads = shape.reads_frames
        self.arrays = ScanArrays(
            self._repeated(whole, videos),
            self._repeated(frames.astype(np.float16), videos) if reads else None,
            self._repeated(counts, videos) if reads and shape.mask_padding else None,
            None,
        )

    def _repeated(self, block: npt.NDArray[Any], videos: int) -> DeviceArray:
        cuda = self._memory.cuda
        buffer, pinned = DeviceBuffer(self._memory, "the gallery"), PinnedBuffer(cuda)
        self._buffers.append(buffer)
        row_bytes = block[:1].nbytes
        buffer.hold(row_bytes * videos)
        stream = cuda.create_stream()
        pinned.hold(block.nbytes)
        pinned.view(block.shape, str(block.dtype))[...] = block
        for start in range(0, videos, len(block)):
            count = min(len(block), videos - start) * row_bytes
            target = buffer.address + start * row_bytes
            cuda.copy_to_device(target, pinned.address, count, stream)
        cuda.synchronize(stream)
        pinned.close()
        cuda.destroy_stream(stream)
        return DeviceArray(buffer.address, (videos, *block.shape[1:]), DType(str(block.dtype)))

    def close(self) -> None:
        """Free the memory."""
        for buffer in self._buffers:
            buffer.close()


@contextmanager
def opened_scan(memory: DeviceMemory, bundle: Bundle | None) -> Iterator[GpuScan]:
    """Open a scan by a bundle's kernels, or by ones compiled for this GPU."""
    opened = (
        compiled_scan(memory, open_driver()) if bundle is None else GpuScan.open(bundle, memory)
    )
    with opened as scan:
        yield scan


@contextmanager
def compiled_scan(
    memory: DeviceMemory, driver: Driver, tunings: Sequence[Tuning] | None = None
) -> Iterator[GpuScan]:
    """Open a scan of the published shape, by kernels compiled for this GPU.

    ``tunings``: how to compile the kernel of the frames; None for the best that are known.
    """
    target = memory.cuda.gpu().compute_capability
    functions = {}
    for kernel in kernels_of(PUBLISHED):
        chosen = tunings if kernel is Kernel.FRAMES else None
        code = compile_kernel(kernel, PUBLISHED, target, tunings=chosen)
        types = tuple(ARGUMENTS[kernel].values())
        function = driver.load(code.image, kernel.value, types, code.num_warps, code.shared_bytes)
        functions[kernel] = ScanKernel(function, code.span)
    weights = random_weights(PUBLISHED, np.random.default_rng(0))
    with GpuScan(PUBLISHED, weights, memory, driver, functions) as scan:
        yield scan


def measure(
    scan: GpuScan,
    memory: DeviceMemory,
    videos: int,
    texts: Sequence[int],
    rounds: int,
    block: int = BLOCK,
) -> list[dict[str, Any]]:
    """Return the times of searches in a gallery of random videos, one entry for each batch."""
    gallery = Gallery(memory, scan.shape, videos, block)
    size = video_bytes(scan.shape) * videos
    entries = []
    try:
        for count in texts:
            queries = random_texts(scan.shape, count, np.random.default_rng(count))
            samples = []
            for turn in range(rounds + 2):  # the first two load caches
                start_s = time.perf_counter()
                found = scan.best(queries, gallery.arrays, min(HITS, videos), None)
                if turn >= 2:
                    samples.append(time.perf_counter() - start_s)
            assert all(len(best) == min(HITS, videos) for best in found)
            median_s = statistics.median(samples)
            entries.append(
                {
                    "videos": videos,
                    "texts": count,
                    "median_ms": median_s * 1e3,
                    "gigabytes_a_second": size / median_s / 1e9,
                    "samples_ms": [sample * 1e3 for sample in samples],
                }
            )
    finally:
        gallery.close()
    return entries


def table(entries: Sequence[dict[str, Any]], gpu: str) -> str:
    """Return measured times as Markdown."""
    lines = [
        f"Exact scans on {gpu}, the best {HITS} included, medians.",
        "",
        "| videos | texts | ms | gallery read, GB/s |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {entry['videos']:,} | {entry['texts']} | {entry['median_ms']:.2f} | "
        f"{entry['gigabytes_a_second']:,.0f} |"
        for entry in entries
    ]
    return "\n".join(lines) + "\n"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    found = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    found.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    found.add_argument("--bundle", type=Path, help="model and kernels to measure")
    found.add_argument("--videos", type=int, nargs="+", default=[100_000, 1_000_000, 4_000_000])
    found.add_argument("--texts", type=int, nargs="+", default=[1, 32])
    found.add_argument("--rounds", type=int, default=20)
    found.add_argument("--toy", action="store_true", help="try the benchmark on 1,000 videos")
    return found


def main() -> None:
    """Measure, and write the tables."""
    options = parser().parse_args()
    sizes, rounds = ([1000], 2) if options.toy else (options.videos, options.rounds)
    surroundings = Surroundings.now()
    missing, entries, text = why_no_gpu(), [], f"Nothing was measured: {why_no_gpu()}.\n"
    if missing is None:
        memory = DeviceMemory(open_cuda(extra="resident"))
        gpu = memory.cuda.gpu()
        bundle = None if options.bundle is None else Bundle.open(options.bundle)
        with opened_scan(memory, bundle) as scan:
            for videos in sizes:
                entries += measure(scan, memory, videos, options.texts, rounds)
                print(table(entries, str(gpu)), flush=True)
        text = table(entries, str(gpu))
    text += "\nCalculated from data sheets, not measured:\n\n" + peak_table()
    options.output.mkdir(parents=True, exist_ok=True)
    content = {"surroundings": vars(surroundings), "no_gpu": missing, "entries": entries}
    replace_text(options.output / "scan.json", json.dumps(content, indent=1) + "\n")
    replace_text(options.output / "scan.md", text)
    print(text)


if __name__ == "__main__":
    main()
