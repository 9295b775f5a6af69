"""Inference with an exported model: texts and frames in, embeddings and scores out."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import ClosedError, InvalidArgumentError, SessionError
from xclip_deploy.runtime.arguments import (
    PathName,
    as_array,
    as_instance,
    as_sequence,
    as_texts,
    as_truth,
    as_whole_number,
    shown,
)
from xclip_deploy.runtime.arrays import slices
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.features import Scores, TextFeatures, VideoFeatures, videos_at_once
from xclip_deploy.runtime.manifest import FileRecord, Graph
from xclip_deploy.runtime.sessions import (
    GalleryScorer,
    GraphLoader,
    Placement,
    Session,
    SessionOptions,
    place,
)
from xclip_deploy.runtime.sessions.backend import BlockScorer, Closable, close_all
from xclip_deploy.runtime.tokenizer import count_tokens

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
        self._check_finite = as_truth("check_finite", check_finite)
        self.tokenizer = bundle.tokenizer()
        self._is_closed = False
        self._loader: GraphLoader = place(self._options, bundle)
        self._sessions: dict[Graph, Session] = {}
        self._block_scorer: BlockScorer | None = None
        self._has_block_scorer = True  # until the backend says otherwise
        self._resident: GalleryScorer | None = None
        self._lock = threading.Lock()

    @property
    def placement(self) -> Placement:
        """The backend, device and arithmetic that were chosen, with the reason."""
        return self._loader.placement

    def artefacts(self) -> dict[str, FileRecord]:
        """Return the files that run, by name: graphs or engines."""
        return self._loader.artefacts()

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Embed texts, cut to the model's length. Raises InvalidArgumentError for non-texts."""
        self._check_open()
        given = as_texts("texts", texts)
        return self.encode_token_ids(self.tokenizer.encode(given, self.config.max_words))

    def count_cut(self, texts: Sequence[str]) -> list[int]:
        """Count the last tokens of each text that the model does not read; 0 for most texts."""
        return self.tokenizer.count_cut(as_texts("texts", texts), self.config.max_words)

    def encode_token_ids(self, token_ids: npt.NDArray[np.integer[Any]]) -> TextFeatures:
        """Embed tokenised texts: integer [T, W], as :meth:`Tokenizer.encode` makes them."""
        self._check_open()
        words = self.config.max_words
        as_array("token_ids", token_ids, np.integer, (None, words), f"integers [texts, {words}]")
        vocab_size = self.config.text.vocab_size
        if token_ids.size and not 0 <= token_ids.min() <= token_ids.max() < vocab_size:
            raise InvalidArgumentError(
                f"token_ids holds ids from {token_ids.min()} to {token_ids.max()}, "
                f"expected 0 to {vocab_size - 1}"
            )
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
        size, most = self.config.vision.image_size, self.config.max_frames
        self._check_open()
        shape = (None, most, size, size, 3)
        expected = f"uint8 [videos, {most}, {size}, {size}, 3]"
        as_array("frames", frames, np.uint8, shape, expected)
        count = len(frames)
        as_array("num_frames", num_frames, np.integer, (count,), f"integers [{count}], one a video")
        if num_frames.size and not 1 <= num_frames.min() <= num_frames.max() <= most:
            raise InvalidArgumentError(
                f"num_frames runs from {num_frames.min()} to {num_frames.max()}, "
                f"expected 1 to {most}"
            )
        inputs = {"frames": frames, "num_frames": num_frames}
        outputs = self._run_batches(Graph.VIDEO_ENCODER, inputs)
        return VideoFeatures(
            outputs["video_features"], outputs["frame_features"], num_frames.astype(np.int32)
        )

    def encode_videos(self, videos: Sequence[npt.NDArray[np.uint8]]) -> VideoFeatures:
        """Embed videos given by their valid frames alone: uint8 RGB [n, S, S, 3] each."""
        self._check_open()
        given = as_sequence("videos", videos, "arrays of frames")
        # Each batch is padded by itself: a thousand videos at once would take gigabytes.
        parts = [self._encode_batch(given[rows]) for rows in slices(len(given), self.max_batch)]
        return VideoFeatures.concatenate(parts) if parts else self._encode_batch([])

    def _encode_batch(self, videos: Sequence[npt.NDArray[np.uint8]]) -> VideoFeatures:
        size, most = self.config.vision.image_size, self.config.max_frames
        batch = np.zeros((len(videos), most, size, size, 3), dtype=np.uint8)
        for row, video in zip(batch, videos, strict=True):
            is_fit = isinstance(video, np.ndarray) and video.shape[1:] == (size, size, 3)
            if not is_fit or video.dtype != np.uint8 or not 1 <= len(video) <= most:
                raise InvalidArgumentError(
                    f"a video is {shown(video)}, expected uint8 [1 to {most}, {size}, {size}, 3]"
                )
            row[: len(video)] = video
        counts = np.array([len(video) for video in videos], dtype=np.int32)
        return self.encode_frames(batch, counts)

    def score(self, texts: TextFeatures, videos: VideoFeatures) -> Scores:
        """Score every text against every video, in chunks of bounded memory.

        Raises SessionError if a score is NaN or infinite.
        """
        self._check_open()
        self._check_features(texts, videos)
        if not len(texts) or not len(videos):
            return self.score_by_graph(texts, videos)
        scorer = self._blocks()
        if scorer is None:
            return self.score_by_graph(texts, videos)
        scores, is_exact = scorer.score(texts, videos)
        rest = np.flatnonzero(~is_exact)
        if len(rest):
            found = self.score_by_graph(texts, videos[rest])
            for name, array in scores.items():
                array[:, rest] = found.logits if name == "logits" else found.grains[name]
        return self._checked_scores(scores, texts, videos)

    def score_by_graph(self, texts: TextFeatures, videos: VideoFeatures) -> Scores:
        """Score as :meth:`score` does, by the exported graph alone, as other runtimes run it."""
        self._check_open()
        self._check_features(texts, videos)
        names = ("logits", *(grain.value for grain in self.config.grains))
        scores = {name: np.empty((len(texts), len(videos)), dtype=np.float32) for name in names}
        if not len(texts) or not len(videos):
            return Scores(scores.pop("logits"), scores)
        session = self._session(Graph.SCORER)
        text_step = min(len(texts), self.max_batch)
        video_step = videos_at_once(self.config, text_step)
        steps = session.chunk({"texts": text_step, "videos": min(len(videos), video_step)})
        for rows in slices(len(texts), steps["texts"]):
            for columns in slices(len(videos), steps["videos"]):
                outputs = session.run({**vars(texts[rows]), **vars(videos[columns])})
                for name, target in scores.items():
                    target[rows, columns] = outputs[name]
        return self._checked_scores(scores, texts, videos)

    def score_gallery(self, texts: TextFeatures, videos: VideoFeatures) -> Scores:
        """Score every text against a gallery that is searched repeatedly, as :meth:`score`.

        A backend that keeps galleries holds this one on its device while the same ``videos`` object
        is passed; only scores are copied back. Raises SessionError, and DeviceMemoryError if the
        gallery does not fit.
        """
        keeps = self._loader.keeps_gallery and self._options.resident_gallery
        is_filled = isinstance(videos, VideoFeatures) and len(videos) > 0
        if not (keeps and is_filled and isinstance(texts, TextFeatures) and len(texts)):
            return self.score(texts, videos)
        self._check_features(texts, videos)
        return self._checked_scores(self._gallery().score(texts, videos), texts, videos)

    def load(self) -> None:
        """Open every session now instead of when it is first needed.

        Raises SessionError, EngineError or BundleIntegrityError.
        """
        for graph in Graph:
            self._session(graph)
        self._blocks()

    def close(self) -> None:
        """Free the sessions. Using the model afterwards raises ClosedError.

        If one session cannot be freed, the others still are, and its SessionError is raised.
        """
        with self._lock:
            self._is_closed = True
            sessions: list[Closable] = list(self._sessions.values())
            self._sessions.clear()
            if self._block_scorer is not None:
                sessions.append(self._block_scorer)
            self._block_scorer, self._has_block_scorer = None, True
            gallery, self._resident = self._resident, None
        parts = sessions if gallery is None else [gallery, *sessions]
        failure = close_all(parts)
        if failure is not None:
            raise failure

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
        state = ", closed" if self._is_closed else ""
        what = f"{self.placement.summary}{state}"
        return f"<{type(self).__name__} of {str(self.bundle.path)!r} ({what})>"

    def __reduce__(self) -> NoReturn:
        raise InvalidArgumentError(
            "a DeployedModel cannot be pickled or copied; open it in the worker: "
            f"DeployedModel({str(self.bundle.path)!r})"
        )

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedError(f"this model of {self.bundle.path} is closed; open another")

    def _check_features(self, texts: object, videos: object) -> None:
        """Refuse features of another kind or of another model's dimensions."""
        as_instance("texts", texts, TextFeatures, "TextFeatures")
        as_instance("videos", videos, VideoFeatures, "VideoFeatures")
        config = self.config
        dim, words, frames = config.embed_dim, config.max_words, config.max_frames
        for features, count, shapes in (
            (texts, "texts", {"sentence_features": (dim,), "word_features": (words, dim)}),
            (videos, "videos", {"video_features": (dim,), "frame_features": (frames, dim)}),
        ):
            for name, shape in shapes.items():
                expected = f"decimal numbers [{', '.join(map(str, (count, *shape)))}]"
                as_array(name, getattr(features, name), np.floating, (None, *shape), expected)

    def _session(self, graph: Graph) -> Session:
        with self._lock:
            return self._open(graph)

    def _open(self, graph: Graph) -> Session:
        """Return the session of a graph; the caller must hold the lock."""
        self._check_open()
        if graph not in self._sessions:
            self._sessions[graph] = self._loader.open(graph)
        return self._sessions[graph]

    def _blocks(self) -> BlockScorer | None:
        """Return the backend's faster scorer, if it has one."""
        with self._lock:
            self._check_open()
            if self._block_scorer is None and self._has_block_scorer:
                self._block_scorer = self._loader.open_block_scorer()
                self._has_block_scorer = self._block_scorer is not None
            return self._block_scorer

    def _gallery(self) -> GalleryScorer:
        with self._lock:
            self._check_open()
            if self._resident is None:
                self._resident = self._loader.keep_gallery(self._open(Graph.SCORER))
            return self._resident

    def _run_batches(
        self, graph: Graph, inputs: Mapping[str, npt.NDArray[Any]]
    ) -> dict[str, npt.NDArray[Any]]:
        """Run an encoder over any number of rows, at most ``max_batch`` at a time."""
        outputs_of = self._loader.outputs(graph)
        total = len(next(iter(inputs.values())))
        results: dict[str, npt.NDArray[Any]] = {
            tensor.name: np.empty((total, *map(int, tensor.shape[1:])), dtype=tensor.dtype.value)
            for tensor in outputs_of
        }
        if not total:
            return results
        session = self._session(graph)
        step = session.chunk({"batch": min(total, self.max_batch)})["batch"]
        for rows in slices(total, step):
            outputs = session.run({name: array[rows] for name, array in inputs.items()})
            for name, target in results.items():
                target[rows] = outputs[name]
        for name, array in results.items():
            # An overflow in half precision would corrupt every ranking. The check costs little
            # beside the encoding.
            if self._check_finite and not np.isfinite(array).all():
                raise self._not_finite(graph, name, array)
        return results

    def _checked_scores(
        self,
        scores: dict[str, npt.NDArray[np.float32]],
        texts: TextFeatures,
        videos: VideoFeatures,
    ) -> Scores:
        # Logits are means of all grains: one that is not finite makes the logit so.
        logits = scores.pop("logits")
        if self._check_finite and not np.isfinite(logits).all():
            for name, array in {**vars(texts), **vars(videos)}.items():
                if not np.isfinite(array).all():
                    raise SessionError(f"the features to score hold NaN or infinity in {name}")
            raise self._not_finite(Graph.SCORER, "logits", logits)
        return Scores(logits, scores)

    def _not_finite(self, graph: Graph, name: str, array: npt.NDArray[Any]) -> SessionError:
        rows = int((~np.isfinite(array.reshape(len(array), -1)).all(axis=1)).sum())
        return SessionError(
            f"{graph.value} gave NaN or infinity in {name}, in {rows} of {len(array)} rows, in "
            f"{self.placement.arithmetic.name} on {self.placement.device_name}; "
            f"use precision='fp32', and run: xclip-deploy verify {self.bundle.path}"
        )
