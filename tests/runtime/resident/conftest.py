"""Models, texts and galleries for scans, and the scorer's own answer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from gallery_samples import DIM, FRAMES, NOTHING_IN_MEMORY, lance_store
from held_galleries import LAYOUT

from stand_in_device import Device
from stand_in_device.kernels import kernel_image, tiling
from xclip_deploy.runtime.arrays import Float64Array
from xclip_deploy.runtime.cuda.driver_api import Driver, open_driver
from xclip_deploy.runtime.cuda.memory import DeviceArray, DeviceBuffer, DeviceMemory, PinnedBuffer
from xclip_deploy.runtime.cuda.runtime_api import open_cuda
from xclip_deploy.runtime.features import TextFeatures, VideoFeatures
from xclip_deploy.runtime.gallery import GalleryStore
from xclip_deploy.runtime.gallery.memory_store import MemoryStore
from xclip_deploy.runtime.grains import PUBLISHED_GRAINS, Grain
from xclip_deploy.runtime.manifest import DType
from xclip_deploy.runtime.model_config import ModelConfig, TextConfig, VisionConfig
from xclip_deploy.runtime.resident.gallery import DeviceGallery
from xclip_deploy.runtime.resident.gpu_scan import GpuScan
from xclip_deploy.runtime.resident.kernel_loading import ScanKernel
from xclip_deploy.runtime.resident.kernel_set import ARGUMENTS, Kernel, kernels_of
from xclip_deploy.runtime.resident.layout import MemoryBound
from xclip_deploy.runtime.resident.scan import ScanArrays
from xclip_deploy.runtime.resident.shape import ScanShape
from xclip_deploy.runtime.scorer_weights import ScorerWeights
from xclip_deploy.training.scorer import Scorer

_SHARED_BYTES = 64 << 10


@dataclass(frozen=True)
class Case:
    """A model's scorer with texts and a gallery in FP16."""

    frames: int = 3
    words: int = 5
    dim: int = 64
    grains: tuple[Grain, ...] = PUBLISHED_GRAINS
    mask_padding: bool = False
    texts: int = 1
    videos: int = 9
    seed: int = 0
    repeats: int = 1
    """How often each video is in the gallery, so that scores are equal."""
    spread: float = 0.05
    """Size of the noise in the learned matrices."""
    scorer: Scorer = field(init=False)
    shape: ScanShape = field(init=False)
    weights: ScorerWeights = field(init=False)
    queries: TextFeatures = field(init=False)
    gallery: VideoFeatures = field(init=False)

    def __post_init__(self) -> None:
        config = ModelConfig(
            embed_dim=self.dim,
            vision=VisionConfig(image_size=32, patch_size=16, width=64, layers=1, heads=1),
            text=TextConfig(width=64, layers=1, heads=1),
            max_words=self.words,
            max_frames=self.frames,
            grains=self.grains,
            mask_padding=self.mask_padding,
        )
        rng = np.random.default_rng(self.seed)
        scorer = Scorer(config)
        with torch.no_grad():
            for name, parameter in scorer.named_parameters():
                if name != "logit_scale":
                    noise = rng.standard_normal(parameter.shape).astype(np.float32)
                    parameter.add_(torch.from_numpy(self.spread * noise))
        arrays = {name: p.detach().numpy() for name, p in scorer.named_parameters()}
        sentences = unit(rng.standard_normal((self.texts, self.dim)))
        words = unit(
            sentences[:, None] + 0.5 * rng.standard_normal((self.texts, self.words, self.dim))
        )
        topics = unit(
            rng.standard_normal((self.videos, 1, self.dim))
            + sentences[rng.integers(self.texts, size=self.videos)][:, None]
        )
        frames = unit(topics + 0.1 * rng.standard_normal((self.videos, self.frames, self.dim)))
        found: dict[str, Any] = {
            "scorer": scorer,
            "shape": ScanShape.of(config),
            "weights": ScorerWeights.from_arrays(arrays, config),
            "queries": TextFeatures(
                sentences.astype(np.float32),
                words.astype(np.float32),
                rng.integers(1, self.words + 1, self.texts).astype(np.int32),
            ),
            "gallery": VideoFeatures(
                np.tile(unit(frames.mean(1)).astype(np.float16), (self.repeats, 1)),
                np.tile(frames.astype(np.float16), (self.repeats, 1, 1)),
                np.tile(
                    rng.integers(1, self.frames + 1, self.videos).astype(np.int32), self.repeats
                ),
            ),
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)

    def expected(self) -> dict[str, Float64Array]:
        """The scorer's logits and grains in FP64, [T, V] each."""
        features = {**vars(self.queries), **vars(self.gallery)}
        tensors = {name: torch.from_numpy(array) for name, array in features.items()}
        wide = {n: t.double() if t.is_floating_point() else t for n, t in tensors.items()}
        with torch.inference_mode():
            output = copy.deepcopy(self.scorer).double()(**wide)
        scores = {"logits": output.logits, **output.grains}
        return {name: tensor.numpy() for name, tensor in scores.items()}


def unit(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Vectors of length 1."""
    found: npt.NDArray[Any] = array / np.linalg.norm(array, axis=-1, keepdims=True)
    return found


@dataclass
class OnDevice:
    """A scan, and a gallery on the GPU."""

    scan: GpuScan
    arrays: ScanArrays
    memory: DeviceMemory


class Uploader:
    """Puts arrays on the GPU, and frees them."""

    def __init__(self, memory: DeviceMemory) -> None:
        self.memory = memory
        self.stack = ExitStack()

    def put(self, array: npt.NDArray[Any]) -> DeviceArray:
        cuda = self.memory.cuda
        cuda.select()
        buffer, pinned, stream = (
            DeviceBuffer(self.memory, "a test"),
            PinnedBuffer(cuda),
            cuda.create_stream(),
        )
        buffer.hold(array.nbytes)
        self.stack.callback(buffer.close)
        pinned.hold(array.nbytes)
        pinned.view(array.shape, str(array.dtype))[...] = array
        cuda.copy_to_device(buffer.address, pinned.address, array.nbytes, stream)
        cuda.synchronize(stream)
        pinned.close()
        cuda.destroy_stream(stream)
        return DeviceArray(buffer.address, array.shape, DType(str(array.dtype)))


def stand_in_kernel(driver: Driver, kernel: Kernel, shape: ScanShape) -> ScanKernel:
    """Load a kernel that the stand-in runs."""
    image = kernel_image(kernel, shape, (8, 9), shared_bytes=_SHARED_BYTES)
    types = tuple(ARGUMENTS[kernel].values())
    function = driver.load(image, kernel.value, types, 4, _SHARED_BYTES)
    return ScanKernel(function, tiling(kernel, shape).span)


@contextmanager
def opened(
    case: Case,
    ranks: Sequence[int] | None = None,
    load_kernel: Callable[[Driver, Kernel, ScanShape], ScanKernel] = stand_in_kernel,
    **options: Any,
) -> Iterator[OnDevice]:
    """A scan by the stand-in's kernels or others, with the case's gallery on the device."""
    memory = DeviceMemory(open_cuda())
    driver, shape = open_driver(), case.shape
    functions = {kernel: load_kernel(driver, kernel, shape) for kernel in kernels_of(shape)}
    uploader = Uploader(memory)
    with (
        uploader.stack,
        GpuScan(shape, case.weights, memory, driver, functions, **options) as scan,
    ):
        gallery = case.gallery
        arrays = ScanArrays(
            uploader.put(gallery.video_features),
            uploader.put(gallery.frame_features) if shape.reads_frames else None,
            uploader.put(gallery.num_frames) if shape.reads_frames and shape.mask_padding else None,
            None if ranks is None else uploader.put(np.asarray(ranks, np.int32)),
        )
        yield OnDevice(scan, arrays, memory)


@pytest.fixture
def open_scan() -> Callable[..., Any]:
    """Open a scan of a case, on the stand-in where a test has it."""
    return opened


@pytest.fixture
def make_case() -> type[Case]:
    """Make a scorer with texts and a gallery."""
    return Case


@pytest.fixture(params=["memory", "lancedb"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> GalleryStore:
    if request.param == "memory":
        return MemoryStore(DIM, FRAMES)
    return lance_store(tmp_path / "gallery", NOTHING_IN_MEMORY)


@pytest.fixture
def make(device: Device) -> Iterator[Callable[..., DeviceGallery]]:
    made: list[DeviceGallery] = []

    def make_gallery(limit_bytes: int | None = None) -> DeviceGallery:
        memory = DeviceMemory(open_cuda())
        made.append(DeviceGallery(LAYOUT, memory, MemoryBound(limit_bytes)))
        return made[-1]

    yield make_gallery
    for gallery in made:
        gallery.close()
