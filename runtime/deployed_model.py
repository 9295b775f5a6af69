"""Inference with an exported model: texts and frames in, embeddings and scores out."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import DeviceMemoryError, InvalidArgumentError
from xclip_deploy.runtime.arguments import (
    PathName,
    as_array,
    as_instance,
    as_sequence,
    as_texts,
    as_truth,
    as_whole_number,
)
from xclip_deploy.runtime.arrays import slices
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.features import Scores, TextFeatures, VideoFeatures, videos_at_once
from xclip_deploy.runtime.manifest import FileRecord, Graph, VideoPart
from xclip_deploy.runtime.model_inputs import (
    check_counts,
    check_features,
    check_frames,
    check_token_ids,
    count_frames,
)
from xclip_deploy.runtime.model_outputs import OutputCheck
from xclip_deploy.runtime.model_sessions import ModelSessions
from xclip_deploy.runtime.sessions import (
    GraphLoader,
    Placement,
    Session,
    SessionOptions,
    place,
)
from xclip_deploy.runtime.tokenizer import count_tokens
from xclip_deploy.runtime.valid_frames import ValidFrameEncoder

_LOG = logging.getLogger(__name__)
MAX_BATCH = 1 << 16
"""Largest allowed ``max_batch``."""


class DeployedModel:
    """The encoders and the scorer of a bundle.

    Sessions are opened when first needed: searching never loads the video encoder. Any number of
    texts or videos is split into batches. It is safe to use from several threads, and a context
    manager.
    """

    def __init__(
        self,
        bundle: PathName | Bundle,
        options: SessionOptions | None = None,
        max_batch: int = 16,
        *,
        check_finite: bool = True,
    ) -> None:
        """Prepare to run a bundle.

        ``max_batch``: most texts or videos in one run of an encoder; engines that were built for
        fewer get fewer. ``check_finite``: whether NaN or infinity in a graph's output is an error;
        without it, the caller checks. Raises SessionError or EngineError if the device, backend or
        precision is not available, MissingExtraError if a library is not installed.
        """
        self.max_batch = as_whole_number("max_batch", max_batch, 1, MAX_BATCH)
        given = SessionOptions() if options is None else options
        self._options: SessionOptions = as_instance(
            "options", given, SessionOptions, "SessionOptions or None"
        )
        bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self.bundle = bundle
        self.config = bundle.manifest.model
        is_checked = as_truth("check_finite", check_finite)
        self.tokenizer = bundle.tokenizer()
        self._loader: GraphLoader = place(self._options, bundle)
        self._check = OutputCheck(self._loader, is_on=is_checked)
        self._sessions = ModelSessions(self._loader)
        self._too_large: weakref.ref[VideoFeatures] | None = None

    @property
    def placement(self) -> Placement:
        """The backend, device and arithmetic that were chosen, with the reason."""
        return self._loader.placement

    @property
    def options(self) -> SessionOptions:
        """The options that the model was opened with."""
        return self._options

    @property
    def keeps_gallery(self) -> bool:
        """Whether the backend itself keeps a gallery on its device, for :meth:`score_gallery`."""
        return self._loader.keeps_gallery and bool(self._options.resident_gallery)

    def artefacts(self) -> dict[str, FileRecord]:
        """Return the files that run, by name: graphs or engines."""
        return self._loader.artefacts()

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Embed texts, cut to the model's length. Raises InvalidArgumentError for non-texts."""
        self._sessions.check_open()
        given = as_texts("texts", texts)
        return self.encode_token_ids(self.tokenizer.encode(given, self.config.max_words))

    def count_cut(self, texts: Sequence[str]) -> list[int]:
        """Count the last tokens of each text that the model does not read; 0 for most texts."""
        return self.tokenizer.count_cut(as_texts("texts", texts), self.config.max_words)

    def encode_token_ids(self, token_ids: npt.NDArray[np.integer[Any]]) -> TextFeatures:
        """Embed tokenised texts: integer [T, W], as :meth:`Tokenizer.encode` makes them."""
        self._sessions.check_open()
        check_token_ids(token_ids, self.config)
        outputs = self._run_batches(Graph.TEXT_ENCODER, {"token_ids": token_ids})
        num_words = count_tokens(token_ids)
        return TextFeatures(outputs["sentence_features"], outputs["word_features"], num_words)

    def encode_frames(
        self, frames: npt.NDArray[np.uint8], num_frames: npt.NDArray[np.integer[Any]]
    ) -> VideoFeatures:
        """Embed videos of prepared frames.

        ``frames``: uint8 RGB [V, F, S, S, 3], resized and cropped, padded at the end.
        ``num_frames``: integer [V], from 1 to F. Raises InvalidArgumentError.
        """
        self._sessions.check_open()
        check_frames(frames, self.config, per_video=True)
        check_counts(num_frames, len(frames), self.config)
        inputs = {"frames": frames, "num_frames": num_frames}
        outputs = self._run_batches(Graph.VIDEO_ENCODER, inputs)
        return VideoFeatures(
            outputs["video_features"], outputs["frame_features"], num_frames.astype(np.int32)
        )

    def encode_videos(self, videos: Sequence[npt.NDArray[np.uint8]]) -> VideoFeatures:
        """Embed videos given by their valid frames alone: uint8 RGB [n, S, S, 3] each."""
        self._sessions.check_open()
        given = as_sequence("videos", videos, "arrays of frames")
        if self.encodes_valid_frames:
            counts = count_frames(given, self.config)

            def run(session: Session, rows: slice) -> Mapping[str, npt.NDArray[Any]]:
                assert isinstance(session, ValidFrameEncoder)
                return session.encode(given[rows])

            outputs = self._gather(Graph.VIDEO_ENCODER, len(given), run)
            return VideoFeatures(outputs["video_features"], outputs["frame_features"], counts)
        # Each batch is padded by itself: a thousand videos at once would take gigabytes.
        parts = [self._encode_batch(given[rows]) for rows in slices(len(given), self.max_batch)]
        return VideoFeatures.concatenate(parts) if parts else self._encode_batch([])

    @property
    def encodes_valid_frames(self) -> bool:
        """Whether padded frames are not encoded, and frames can be encoded apart."""
        return self._loader.runs_video_parts

    def embed_frames(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Embed frames before normalisation and temporal head, FP32 [N, D].

        ``frames``: uint8 RGB [N, S, S, 3]. Only where :attr:`encodes_valid_frames`. Raises
        InvalidArgumentError.
        """
        encoder = self._valid_frame_encoder()
        check_frames(frames, self.config, per_video=False)
        raw = np.empty((len(frames), self.config.embed_dim), dtype=np.float32)
        for rows in slices(len(frames), self.max_batch * self.config.max_frames):
            raw[rows] = encoder.embed(frames[rows])
        self._check.outputs(VideoPart.FRAME_ENCODER, {"frame_raw": raw})
        return raw

    def combine_frames(
        self, frame_raw: npt.NDArray[np.float32], num_frames: npt.NDArray[np.integer[Any]]
    ) -> VideoFeatures:
        """Return the features of videos whose frames :meth:`embed_frames` embedded.

        ``frame_raw``: FP32 [V, F, D]; padding at the end may hold anything. ``num_frames``: integer
        [V], from 1 to F. Only where :attr:`encodes_valid_frames`. Raises InvalidArgumentError.
        """
        most, dim = self.config.max_frames, self.config.embed_dim
        encoder = self._valid_frame_encoder()
        expected = f"float32 [videos, {most}, {dim}]"
        as_array("frame_raw", frame_raw, np.float32, (None, most, dim), expected)
        check_counts(num_frames, len(frame_raw), self.config)
        outputs = self._gather(
            Graph.VIDEO_ENCODER,
            len(frame_raw),
            lambda _, rows: encoder.combine(frame_raw[rows], num_frames[rows]),
        )
        counts = num_frames.astype(np.int32)
        return VideoFeatures(outputs["video_features"], outputs["frame_features"], counts)

    def _valid_frame_encoder(self) -> ValidFrameEncoder:
        self._sessions.check_open()
        session = self._sessions.of(Graph.VIDEO_ENCODER) if self.encodes_valid_frames else None
        if not isinstance(session, ValidFrameEncoder):
            raise InvalidArgumentError(
                f"{self.placement.summary} encodes no frames apart from their video; expected a "
                "bundle with frame_encoder.onnx, and a backend that runs it; "
                f"run: xclip-deploy export CHECKPOINT -o {self.bundle.path}"
            )
        return session

    def _encode_batch(self, videos: Sequence[npt.NDArray[np.uint8]]) -> VideoFeatures:
        """Pad videos, and encode them."""
        size, most = self.config.vision.image_size, self.config.max_frames
        counts = count_frames(videos, self.config)
        batch = np.zeros((len(videos), most, size, size, 3), dtype=np.uint8)
        for row, video in zip(batch, videos, strict=True):
            row[: len(video)] = video
        return self.encode_frames(batch, counts)

    def score(self, texts: TextFeatures, videos: VideoFeatures) -> Scores:
        """Score every text against every video, in chunks of bounded memory.

        Raises SessionError if a score is NaN or infinite.
        """
        self._sessions.check_open()
        check_features(texts, videos, self.config)
        if not len(texts) or not len(videos):
            return self.score_by_graph(texts, videos)
        scorer = self._sessions.block_scorer()
        if scorer is None:
            return self.score_by_graph(texts, videos)
        scores, is_exact = scorer.score(texts, videos)
        rest = np.flatnonzero(~is_exact)
        if len(rest):
            found = self.score_by_graph(texts, videos[rest])
            for name, array in scores.items():
                array[:, rest] = found.logits if name == "logits" else found.grains[name]
        return self._check.scores(scores, texts, videos)

    def score_by_graph(self, texts: TextFeatures, videos: VideoFeatures) -> Scores:
        """Score as :meth:`score` does, by the exported graph alone, as other runtimes run it."""
        self._sessions.check_open()
        check_features(texts, videos, self.config)
        names = ("logits", *(grain.value for grain in self.config.grains))
        scores = {name: np.empty((len(texts), len(videos)), dtype=np.float32) for name in names}
        if not len(texts) or not len(videos):
            return Scores(scores.pop("logits"), scores)
        session = self._sessions.of(Graph.SCORER)
        text_step = min(len(texts), self.max_batch)
        video_step = videos_at_once(self.config, text_step)
        steps = session.chunk({"texts": text_step, "videos": min(len(videos), video_step)})
        for rows in slices(len(texts), steps["texts"]):
            for columns in slices(len(videos), steps["videos"]):
                outputs = session.run({**vars(texts[rows]), **vars(videos[columns])})
                for name, target in scores.items():
                    target[rows, columns] = outputs[name]
        return self._check.scores(scores, texts, videos)

    def score_gallery(self, texts: TextFeatures, videos: VideoFeatures) -> Scores:
        """Score every text against a gallery that is searched repeatedly, as :meth:`score`.

        A backend that keeps galleries holds this one on its device while the same ``videos`` object
        is passed; only scores are copied back. Raises SessionError, and DeviceMemoryError if the
        gallery does not fit and ``resident_gallery`` is True.
        """
        is_filled = isinstance(videos, VideoFeatures) and len(videos) > 0
        if not (
            self.keeps_gallery and is_filled and isinstance(texts, TextFeatures) and len(texts)
        ):
            return self.score(texts, videos)
        check_features(texts, videos, self.config)
        try:
            scores = self._sessions.gallery_scorer().score(texts, videos)
        except DeviceMemoryError as error:
            if self._options.resident_gallery is True:
                raise
            if self._too_large is None or self._too_large() is not videos:
                self._too_large = weakref.ref(videos)
                _LOG.warning("the gallery is copied to the GPU at every search: %s", error)
            return self.score(texts, videos)
        return self._check.scores(scores, texts, videos)

    def load(self) -> None:
        """Open every session now instead of when it is first needed.

        Raises SessionError, EngineError or BundleIntegrityError.
        """
        for graph in Graph:
            self._sessions.of(graph)
        self._sessions.block_scorer()

    def close(self) -> None:
        """Free the sessions. Using the model afterwards raises ClosedError.

        If one session cannot be freed, the others still are, and its SessionError is raised.
        """
        self._sessions.close()

    def __enter__(self) -> DeployedModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = ", closed" if self._sessions.is_closed else ""
        what = f"{self.placement.summary}{state}"
        return f"<{type(self).__name__} of {str(self.bundle.path)!r} ({what})>"

    def __reduce__(self) -> NoReturn:
        raise InvalidArgumentError(
            "a DeployedModel cannot be pickled or copied; open it in the worker: "
            f"DeployedModel({str(self.bundle.path)!r})"
        )

    def _run_batches(
        self, graph: Graph, inputs: Mapping[str, npt.NDArray[Any]]
    ) -> dict[str, npt.NDArray[Any]]:
        """Run an encoder over any number of rows, at most ``max_batch`` at a time."""
        return self._gather(
            graph,
            len(next(iter(inputs.values()))),
            lambda session, rows: session.run({n: array[rows] for n, array in inputs.items()}),
        )

    def _gather(
        self,
        graph: Graph,
        total: int,
        run: Callable[[Session, slice], Mapping[str, npt.NDArray[Any]]],
    ) -> dict[str, npt.NDArray[Any]]:
        """Call ``run`` for slices of ``total`` rows, and return the outputs of all."""
        outputs_of = self._loader.outputs(graph)
        results: dict[str, npt.NDArray[Any]] = {
            tensor.name: np.empty((total, *map(int, tensor.shape[1:])), dtype=tensor.dtype.value)
            for tensor in outputs_of
        }
        if not total:
            return results
        session = self._sessions.of(graph)
        step = session.chunk({"batch": min(total, self.max_batch)})["batch"]
        for rows in slices(total, step):
            outputs = run(session, rows)
            for name, target in results.items():
                target[rows] = outputs[name]
        self._check.outputs(graph, results)
        return results
