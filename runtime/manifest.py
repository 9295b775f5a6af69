"""The bundle's manifest: a versioned, validated description of everything in it."""

from __future__ import annotations

import hashlib
import json
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    field_validator,
    model_serializer,
    model_validator,
)

from xclip_deploy.runtime.files import sha256_of
from xclip_deploy.runtime.model_config import FrozenModel, ModelConfig
from xclip_deploy.runtime.video import FrameSampling, VideoReader, VideoReading

SCHEMA_VERSION = 2
FORMAT = "xclip-bundle"
MANIFEST_NAME = "manifest.json"

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Graph(str, Enum):
    """The three networks, named alike as module, ONNX file, engine and in the manifest."""

    VIDEO_ENCODER = "video_encoder"
    TEXT_ENCODER = "text_encoder"
    SCORER = "scorer"


class VideoPart(str, Enum):
    """The two halves of ``video_encoder``, for backends that encode valid frames alone."""

    FRAME_ENCODER = "frame_encoder"
    """Frames to their embeddings before normalisation and temporal head."""
    TEMPORAL_HEAD = "temporal_head"
    """Those embeddings to the outputs of ``video_encoder``."""


AnyGraph = Graph | VideoPart
"""Graph of a bundle."""


class Precision(str, Enum):
    """Precision of a graph's weights and arithmetic. Some parts stay in FP32."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    """BF16, for TensorRT alone. ONNX Runtime has no such kernels."""
    INT8 = "int8"
    """INT8 weights and activations of the encoders' matrix products, for the CPU alone."""
    INT8_WEIGHTS = "int8-weights"
    """INT8 weights of the encoders' matrix products, for OpenVINO alone. It quantises activations
    as it runs, where the CPU gains by it."""


class DType(str, Enum):
    """Element type of a tensor at a graph's boundary, by its NumPy name."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT32 = "int32"
    UINT8 = "uint8"


class TensorSpec(FrozenModel):
    """One input or output of a graph."""

    name: str
    dtype: DType
    shape: tuple[int | str, ...]
    """Size of each axis. A name stands for a dynamic axis."""


class GraphSpec(FrozenModel):
    """One ONNX graph."""

    file: str
    """Path within the bundle."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class PartSpec(GraphSpec):
    """One ONNX graph whose weights lie in a file that other graphs share."""

    weights: tuple[str, ...]
    """Paths of the files of weights within the bundle, in the folder of the graph."""


class FusedSpec(PartSpec):
    """One ONNX graph rewritten to ONNX Runtime's fused operators, with the plain one's weights."""

    operators: dict[str, int]
    """Number of fused operators of ONNX Runtime's domain ``com.microsoft``, by operator."""


class FileRecord(FrozenModel):
    """Hash and size that a file of the bundle must have."""

    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=0)]


class Preprocessing(FrozenModel):
    """How a decoded frame becomes the graph's input, and what the graph does with it."""

    image_size: Annotated[int, Field(gt=0)]
    """Side of the square, pixels."""
    resize: Literal["short side, bicubic with antialiasing, centre crop"] = (
        "short side, bicubic with antialiasing, centre crop"
    )
    mean: tuple[float, float, float]
    """Subtracted in the graph, in units of the full range, RGB."""
    std: tuple[float, float, float]
    square_pixels: bool = False
    """Show anamorphic video in its true proportions. The published models were trained on
    stored pixels, so it is off for them."""

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Off, it stands in no file: manifests, checksums and fingerprints stay as they were.
        content: dict[str, Any] = serialize(self)
        if not self.square_pixels:
            del content["square_pixels"]
        return content


class Tolerance(FrozenModel):
    """Largest differences from the FP32 model that pass in one precision.

    The first four bind a tensor wherever it is compared. The last two bind retrieval, which
    needs texts that belong to videos.
    """

    feature: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Largest difference of one element of a unit vector."""
    cosine: Annotated[float, Field(le=1)]
    """Least cosine between an embedding and its reference."""
    score: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Largest root mean square difference of a grain, over all pairs of texts and videos. That
    of the logits may be this times the score scale."""
    outlier_factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 50.0
    """Largest difference of a single pair, in multiples of ``score``. The scorer's softmaxes
    have a temperature of 0.01. Where two words or frames nearly tie, rounding shifts much of
    their weight. Of 40,000 pairs of a trained model, the worst in FP16 was off by 43 times the
    root mean square, 15 times ``score``."""
    recall_points: Annotated[float, Field(ge=0, le=100)] = 0.5
    """Largest difference of a recall, in percentage points. One query's worth always passes,
    since fewer than 200 queries cannot resolve half a point."""
    top1_agreement: Annotated[float, Field(ge=0, le=1)] = 0.99
    """Least share of texts with the same video first, and of texts without a rank flip beyond
    near ties. One text that differs always passes."""


class ParityMethod(str, Enum):
    """Way in which the graphs ran when the export compared them with PyTorch."""

    ONNX_RUNTIME = "onnxruntime"
    """ONNX Runtime ran the graphs unchanged on the CPU."""
    ROUNDED = "rounded"
    """ONNX Runtime ran FP32 operations on the CPU, each result rounded to the precision."""
    OPENVINO = "openvino"
    """OpenVINO ran the encoders unchanged on the CPU, and ONNX Runtime the scorer."""
    FUSED = "fused"
    """ONNX Runtime ran the graphs with fused operators on the CPU."""


class ParityRecord(FrozenModel):
    """Difference of one output of one graph from the PyTorch model in FP32."""

    precision: Precision
    graph: AnyGraph
    tensor: str
    min_cosine: float | None
    """Least cosine over the vectors of the last axis. None for scores."""
    max_abs_error: float
    rms_error: float | None
    """Root mean square error of scores. None for embeddings, which are bound by element."""
    tolerance: float
    """Largest ``max_abs_error`` of an embedding, or ``rms_error`` of scores, that passes."""
    passed: bool
    method: ParityMethod = ParityMethod.ONNX_RUNTIME


class Provenance(FrozenModel):
    """Origin of the bundle."""

    checkpoint: str
    """File name of the source checkpoint."""
    checkpoint_sha256: Sha256
    layout: str
    """Name of the checkpoint's layout."""
    notes: tuple[str, ...] = ()
    """Assumptions that the weights did not settle."""
    created_utc: str
    versions: dict[str, str]
    """Versions of the tools that wrote the bundle."""


class Manifest(FrozenModel):
    """Contents of ``manifest.json``."""

    format: Literal["xclip-bundle"] = "xclip-bundle"
    schema_version: Literal[2] = 2
    fingerprint: Sha256
    """Hash of the model's weights, configuration, sampling and preprocessing. Features of two
    fingerprints are not comparable."""
    model: ModelConfig
    frames_per_second: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Frames sampled per second of video, before at most ``model.max_frames`` are kept."""
    preprocessing: Preprocessing
    tokenizer: str
    """Path of ``tokenizer.json`` within the bundle."""
    scorer_weights: str
    """Path of ``scorer.npz`` within the bundle."""
    graphs: dict[Precision, dict[Graph, GraphSpec]]
    video_parts: dict[Precision, dict[VideoPart, PartSpec]] = Field(default_factory=dict)
    """The halves of ``video_encoder``, in precisions that have them. Models with 3d patches mix
    frames before the temporal head and have none, like bundles of earlier releases."""
    fused_graphs: dict[Precision, dict[Graph | VideoPart, FusedSpec]] = Field(default_factory=dict)
    """Encoders rewritten to ONNX Runtime's fused operators, for its CUDA provider. Bundles of
    earlier releases have none."""
    files: dict[str, FileRecord]
    """Every file that the export wrote, apart from the manifest itself."""
    tolerances: dict[Precision, Tolerance]
    """Tolerances of each precision, for the export and for ``xclip-deploy verify``."""
    parity: tuple[ParityRecord, ...]
    provenance: Provenance

    @field_validator("files")
    @classmethod
    def _paths_stay_inside(cls, files: dict[str, FileRecord]) -> dict[str, FileRecord]:
        for name in files:
            path = PurePosixPath(name)
            is_odd = "\\" in name or "\0" in name or str(path) != name
            if path.is_absolute() or ".." in path.parts or is_odd:
                raise ValueError(f"{name!r} is no plain path within the bundle")
        return files

    @field_validator("graphs")
    @classmethod
    def _graphs_complete(
        cls, graphs: dict[Precision, dict[Graph, GraphSpec]]
    ) -> dict[Precision, dict[Graph, GraphSpec]]:
        if not graphs:
            raise ValueError("holds no graphs")
        for precision, present in graphs.items():
            missing = [graph.value for graph in Graph if graph not in present]
            if missing:
                raise ValueError(f"{precision.value} lacks {', '.join(missing)}")
        return graphs

    @field_validator("video_parts")
    @classmethod
    def _halves_complete(
        cls, parts: dict[Precision, dict[VideoPart, PartSpec]]
    ) -> dict[Precision, dict[VideoPart, PartSpec]]:
        for precision, present in parts.items():
            missing = [part.value for part in VideoPart if part not in present]
            if missing:
                raise ValueError(f"{precision.value} lacks {', '.join(missing)}")
        return parts

    @model_validator(mode="after")
    def _parts_fit(self) -> Manifest:
        named = [spec.file for graphs in self.graphs.values() for spec in graphs.values()]
        for precision, parts in self.video_parts.items():
            if precision not in self.graphs:
                raise ValueError(f"graphs lack {precision.value}, of which there are video parts")
            named += [name for spec in parts.values() for name in (spec.file, *spec.weights)]
        for precision, fused in self.fused_graphs.items():
            for graph, fused_spec in fused.items():
                plain = self.graphs if isinstance(graph, Graph) else self.video_parts
                if graph not in plain.get(precision, {}):
                    raise ValueError(f"{precision.value} lacks {graph.value}, which is there fused")
                named += [fused_spec.file, *fused_spec.weights]
        for name in (*named, self.tokenizer, self.scorer_weights):
            if name not in self.files:
                raise ValueError(f"{name} is not among its files")
        for precision in self.graphs:
            if precision not in self.tolerances:
                raise ValueError(f"tolerances lack {precision.value}")
        if self.preprocessing.image_size != self.model.vision.image_size:
            raise ValueError(
                f"preprocessing makes frames of {self.preprocessing.image_size} px, the model "
                f"takes {self.model.vision.image_size}"
            )
        return self

    @model_serializer(mode="wrap")
    def _leave_out_no_parts(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A manifest without parts is written as before there were any.
        content: dict[str, Any] = serialize(self)
        if not self.video_parts:
            del content["video_parts"]
        if not self.fused_graphs:
            del content["fused_graphs"]
        return content

    def spec(self, graph: AnyGraph, precision: Precision, *, is_fused: bool = False) -> GraphSpec:
        """Return the file, inputs and outputs of a graph that the bundle has."""
        if is_fused:
            return self.fused_graphs[precision][graph]
        if isinstance(graph, Graph):
            return self.graphs[precision][graph]
        return self.video_parts[precision][graph]

    def without_fused(self, graph: AnyGraph, precision: Precision) -> Manifest:
        """Return the manifest without a fused graph and the record of its file."""
        fused = {each: dict(specs) for each, specs in self.fused_graphs.items()}
        file = fused[precision].pop(graph).file
        files = {name: record for name, record in self.files.items() if name != file}
        kept = {each: specs for each, specs in fused.items() if specs}
        return self.model_copy(update={"fused_graphs": kept, "files": files})

    def files_of(
        self, graph: AnyGraph, precision: Precision, *, is_fused: bool = False
    ) -> tuple[str, ...]:
        """Return the paths of a graph's files within the bundle: the graph, then its weights."""
        spec = self.spec(graph, precision, is_fused=is_fused)
        if isinstance(spec, PartSpec):
            return (spec.file, *spec.weights)
        # Weights beside a graph lie in files whose names begin with the graph's.
        beside = sorted(n for n in self.files if n.startswith(spec.file) and n != spec.file)
        return (spec.file, *beside)

    def graph_bytes(self, graph: Graph, precision: Precision) -> int:
        """Return the size of a graph with its weights, bytes."""
        names = self.files_of(graph, precision)
        return sum(self.files[name].size_bytes for name in names)

    def video_reading(self, reader: VideoReader = "pyav") -> VideoReading:
        """Return how to read videos for this model. Raises InvalidArgumentError."""
        sampling = FrameSampling(
            frames_per_second=self.frames_per_second, max_frames=self.model.max_frames
        )
        preprocessing = self.preprocessing
        return VideoReading(sampling, preprocessing.image_size, reader, preprocessing.square_pixels)

    def to_json(self) -> bytes:
        """Serialise, with a checksum over the content that reveals edits."""
        content = self.model_dump(mode="json")
        content["checksum"] = checksum(content)
        return json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"


def checksum(content: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest's content in canonical JSON, without its checksum."""
    rest = {key: value for key, value in content.items() if key != "checksum"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def file_records(folder: Path) -> dict[str, FileRecord]:
    """Return the record of every file in ``folder``, by its path within it."""
    return {
        path.relative_to(folder).as_posix(): FileRecord(
            sha256=sha256_of(path), size_bytes=path.stat().st_size
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
