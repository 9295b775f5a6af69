"""Retriever: videos in, text queries out. The public face of the runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args, overload

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import GalleryError, InvalidArgumentError, VideoError
from xclip_deploy.runtime.bundle import Bundle
from xclip_deploy.runtime.deployed_model import DeployedModel
from xclip_deploy.runtime.evidence import (
    Contrast,
    Explanation,
    TokenKind,
    explain_video,
    without,
    words_of,
)
from xclip_deploy.runtime.features import Scores, TextFeatures, VideoFeatures
from xclip_deploy.runtime.gallery import Gallery, GalleryVideo, Snapshot
from xclip_deploy.runtime.results import AddReport, FailedVideo, GrainScores, SearchResult
from xclip_deploy.runtime.scorer_weights import ScorerWeights
from xclip_deploy.runtime.sessions import SessionOptions
from xclip_deploy.runtime.sessions.protocol import DeviceName, PrecisionName
from xclip_deploy.runtime.tokenizer import clean_text
from xclip_deploy.runtime.video import (
    FrameSampling,
    VideoFrames,
    VideoReader,
    find_videos,
    read_video,
    read_videos,
)

PathName = str | PathLike[str]
Hit = SearchResult | str
"""What a search gave, or the id of a video in the gallery."""
OnDuplicate = Literal["error", "skip", "replace"]
Progress = Callable[[int, int, int], None]
"""Called with videos done, videos in all, and how many of the done ones failed."""


class Retriever:
    """Finds videos by text, and videos by video.

    >>> retriever = Retriever("xclip-bundle")                       # doctest: +SKIP
    >>> retriever.add(["videos/"])                                  # doctest: +SKIP
    >>> retriever.search("a dog on a leash", k=3)[0].path           # doctest: +SKIP
    'videos/dog.mp4'

    Safe to use from several threads; a context manager.
    """

    def __init__(
        self,
        bundle: PathName | Bundle = "xclip-bundle",
        gallery: PathName | Gallery | None = None,
        *,
        device: DeviceName = "auto",
        precision: PrecisionName = "auto",
        threads: int | None = None,
        max_batch: int = 16,
        reader: VideoReader = "pyav",
        session: SessionOptions | None = None,
    ) -> None:
        """Open a bundle, and a gallery where one is given; else start an empty one.

        ``device``: ``auto``, ``cpu`` or ``cuda``; ``precision``: ``auto``, ``fp32``, ``fp16``,
        ``bf16`` or ``int8``; what was chosen and why is in :attr:`model` ``.placement``.
        ``threads``: CPU threads for inference and for decoding, None for one per core.
        ``max_batch``: most texts or videos in one run of an encoder; more are split.
        ``reader``: ``pyav`` or ``decord``. ``session``: all options of inference, backend and
        GPU among them, instead of ``device`` and ``precision``, to be left alone then.

        Raises BundleError, GalleryError, SessionError, EngineError or MissingExtraError.
        """
        if reader not in get_args(VideoReader):
            raise InvalidArgumentError(f"reader {reader!r}: expected pyav or decord")
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(Path(bundle))
        if session is not None and (device, precision) != ("auto", "auto"):
            raise InvalidArgumentError(
                f"device {device!r} and precision {precision!r} were given beside session; "
                "expected them in it alone"
            )
        options = session or SessionOptions(device=device, precision=precision, threads=threads)
        self.model = DeployedModel(self.bundle, options, max_batch)
        manifest = self.bundle.manifest
        if gallery is None:
            self.gallery = Gallery(manifest)
        elif isinstance(gallery, Gallery):
            gallery.check_model(manifest)
            self.gallery = gallery
        else:
            self.gallery = Gallery.open(Path(gallery), manifest)
        self.sampling = FrameSampling(
            frames_per_second=manifest.frames_per_second, max_frames=manifest.model.max_frames
        )
        self._image_size = manifest.preprocessing.image_size
        self._reader: VideoReader = reader
        self._threads = threads
        self._weights: ScorerWeights | None = None

    # -- gallery ---------------------------------------------------------------------------

    def add(
        self,
        paths: PathName | Iterable[PathName],
        *,
        ids: Sequence[str] | None = None,
        on_duplicate: OnDuplicate = "error",
        progress: bool | Progress = False,
    ) -> AddReport:
        """Read, encode and add videos: files, or folders with all videos below them.

        ``ids``: one for each path, which must then be files; without them, a video's id is its
        absolute path. ``on_duplicate``: what to do with an id that the gallery has; ``error``
        raises before anything is read. ``progress``: True draws a bar on standard error; a
        function is called after every video.

        A video that cannot be read is reported in the result and the rest goes on. After an
        exception (Ctrl-C too) the videos encoded so far are in the gallery.

        Raises VideoNotFoundError for a path that is not there, DuplicateIdError,
        InvalidArgumentError.
        """
        given = [paths] if isinstance(paths, (str, PathLike)) else list(paths)
        chosen = self._name_videos([Path(path) for path in given], ids)
        skipped: list[str] = []
        if on_duplicate == "error":
            self.gallery.check_new([video_id for video_id, _ in chosen])
        elif on_duplicate == "skip":
            skipped = [video_id for video_id, _ in chosen if video_id in self.gallery]
            chosen = [(name, path) for name, path in chosen if name not in self.gallery]
        elif on_duplicate != "replace":
            raise InvalidArgumentError(
                f"on_duplicate {on_duplicate!r}: expected error, skip or replace"
            )
        if progress is True and chosen:
            from xclip_deploy.runtime.progress import video_progress

            with video_progress(len(chosen)) as report:
                return self._add(chosen, skipped, report)
        return self._add(chosen, skipped, progress if callable(progress) else _no_progress)

    def add_features(self, videos: Sequence[GalleryVideo], features: VideoFeatures) -> None:
        """Add videos that were encoded elsewhere with the same model, all or none.

        Raises DuplicateIdError, InvalidArgumentError for features of other shapes.
        """
        self.gallery.add(videos, features)

    def remove(self, ids: str | Sequence[str]) -> None:
        """Remove videos, all or none. Raises GalleryError for an id that is not there."""
        self.gallery.remove([ids] if isinstance(ids, str) else ids)

    def save(self, path: PathName) -> None:
        """Write the gallery to a directory, in one step. Raises GalleryError."""
        self.gallery.save(Path(path))

    def __len__(self) -> int:
        """Number of videos in the gallery."""
        return len(self.gallery)

    # -- search ----------------------------------------------------------------------------

    def search(self, text: str, k: int = 10) -> list[SearchResult]:
        """Find the ``k`` videos that fit a text best, best first; all where there are fewer.

        Scored by the multi-grained scorer against every video of the gallery. An empty
        gallery gives an empty list. Raises InvalidArgumentError for a text without a word, or
        ``k`` below 1.
        """
        if not isinstance(text, str):
            raise InvalidArgumentError(f"expected a text (str), found {type(text).__name__}")
        return self.search_batch([text], k)[0]

    def search_batch(self, texts: Sequence[str], k: int = 10) -> list[list[SearchResult]]:
        """Search for several texts at once; one list of results for each. See :meth:`search`."""
        _check_k(k)
        for text in texts:
            if isinstance(text, str) and not clean_text(text):
                raise InvalidArgumentError(f"the text {text!r} holds no word to search for")
        features = self.encode_texts(texts)
        snapshot = self.gallery.snapshot()
        if not len(snapshot) or not len(features):
            return [[] for _ in texts]
        scores = self.model.score_gallery(features, snapshot.features)
        return [self._text_results(row, features, scores, snapshot, k) for row in range(len(texts))]

    def search_by_video(self, video: PathName | VideoFrames, k: int = 10) -> list[SearchResult]:
        """Find the ``k`` videos most similar to a video, best first.

        ``video``: a file, or frames from :func:`read_video`. The score is the cosine of the
        two video embeddings. A video that is itself in the gallery is found like any other.
        Raises VideoError, InvalidArgumentError.
        """
        _check_k(k)
        frames = video if isinstance(video, VideoFrames) else self.read_video(video)
        query = self.encode_videos([frames])
        snapshot = self.gallery.snapshot()
        if not len(snapshot):
            return []
        features = snapshot.features
        cosines = features.video_features.astype(np.float32) @ query.video_features[0]
        cosines = cosines.clip(-1, 1)  # FP16 makes some unit vectors a little longer
        query_frames = query.frame_features[0, : query.num_frames[0]]
        results = []
        for rank, n in enumerate(_best(cosines, k), start=1):
            similarity = features.frame_features[n].astype(np.float32) @ query_frames.T  # [F, Fq]
            best_frame = _best_frame(similarity.max(axis=1), snapshot.videos[n])
            entry = snapshot.videos[n]
            results.append(
                SearchResult(rank, entry.id, entry.path, float(cosines[n]), None, best_frame)
            )
        return results

    # -- evidence --------------------------------------------------------------------------

    @overload
    def explain(self, query: str, a: Hit) -> Explanation: ...

    @overload
    def explain(self, query: str, a: Hit, b: Hit) -> Contrast: ...

    def explain(self, query: str, a: Hit, b: Hit | None = None) -> Explanation | Contrast:
        """Why a video has the score that it has for a text, or why it ranks above another.

        ``a``, ``b``: hits of a search, of whatever query, or ids of videos in the gallery. The
        score is computed anew from the gallery as it is now, and taken apart into what every
        word and frame contributes; once more without each word, to find those that the video has
        nothing of. Raises GalleryError for a video that is not there, BundleVersionError
        for a bundle without the scorer's matrices, InvalidArgumentError for a text without a
        word.
        """
        if not isinstance(query, str) or not clean_text(query):
            raise InvalidArgumentError(f"the text {query!r} holds no word to explain")
        weights = self._scorer_weights()
        config = self.bundle.manifest.model
        snapshot = self.gallery.snapshot()
        chosen = [_find(snapshot, hit) for hit in (a, b) if hit is not None]
        token_ids = self.model.tokenizer.encode([query], config.max_words)
        words = words_of(self.model.tokenizer, token_ids[0])
        proper = [word for word in words if word.kind is TokenKind.WORD]
        variants = [token_ids[0], *(without(token_ids[0], word) for word in proper)]
        texts = self.model.encode_token_ids(np.stack(variants))
        found = [
            explain_video(
                query,
                words,
                texts,
                snapshot.videos[n],
                snapshot.features[n : n + 1],
                weights,
                config,
            )
            for n in chosen
        ]
        return found[0] if b is None else Contrast(*found)

    def plot_explanation(self, explanation: Explanation | Contrast, path: PathName) -> None:
        """Write an explanation as a PNG: frames over a heat map against the words.

        Frames are read again from the video's file; where that is gone or another by now, they
        are grey, and the picture says so. Raises MissingExtraError without matplotlib,
        InvalidArgumentError where ``path`` cannot be written.
        """
        if isinstance(explanation, Explanation):
            explanation.plot(path, *self._thumbnails(explanation))
            return
        (first, note), (second, other) = map(
            self._thumbnails, (explanation.first, explanation.second)
        )
        explanation.plot(path, (first, second), (note, other))

    def _thumbnails(self, explanation: Explanation) -> tuple[VideoFrames | None, str | None]:
        """The frames that were encoded, or why they are not to be had."""
        if explanation.path is None:
            return None, "no frames: the features were added without a file"
        try:
            frames = self.read_video(explanation.path)
        except VideoError as error:
            return None, f"no frames: {error}"
        times = tuple(frame.time_s for frame in explanation.frames if frame.time_s is not None)
        if times != tuple(float(time) for time in frames.times_s):
            return None, f"no frames: {explanation.path} is another video than was encoded"
        return frames, None

    def _scorer_weights(self) -> ScorerWeights:
        if self._weights is None:
            self._weights = self.bundle.scorer_weights()
        return self._weights

    # -- for pipelines of one's own --------------------------------------------------------

    def read_video(self, path: PathName) -> VideoFrames:
        """Read one video as the model wants it. Raises VideoError."""
        return read_video(Path(path), self.sampling, self._image_size, reader=self._reader)

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Embed any number of texts. Raises InvalidArgumentError for non-texts."""
        return self.model.encode_texts(texts)

    def encode_videos(self, videos: Sequence[VideoFrames]) -> VideoFeatures:
        """Embed any number of videos that were read with :meth:`read_video`."""
        return self.model.encode_clips([video.frames for video in videos])

    def encode_frames(
        self, frames: npt.NDArray[np.uint8], num_frames: npt.NDArray[np.integer[Any]]
    ) -> VideoFeatures:
        """Embed videos from frames of one's own: see :meth:`DeployedModel.encode_frames`."""
        return self.model.encode_frames(frames, num_frames)

    def score(self, texts: TextFeatures, videos: VideoFeatures) -> Scores:
        """Score every text against every video: logits and grains, each [T, V]."""
        return self.model.score(texts, videos)

    # -- life ------------------------------------------------------------------------------

    def close(self) -> None:
        """Free the inference sessions. The gallery stays."""
        self.model.close()

    def __enter__(self) -> Retriever:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _name_videos(self, paths: list[Path], ids: Sequence[str] | None) -> list[tuple[str, Path]]:
        """Ids and files, each file once."""
        if ids is None:
            # By absolute path, since one file can be given in two ways.
            named = {str(path.absolute()): path for path in find_videos(paths)}
            return list(named.items())
        if isinstance(ids, str) or len(ids) != len(paths):
            raise InvalidArgumentError(f"found {len(ids)} ids for {len(paths)} paths")
        for path in paths:
            if path.is_dir():
                raise InvalidArgumentError(f"{path} is a folder; ids can only be given for files")
        for name in ids:
            if not isinstance(name, str) or not name or not _is_utf8(name):
                raise InvalidArgumentError(f"ids must be texts and not empty; found {name!r}")
        if len(set(ids)) != len(ids):
            twice = next(name for name in ids if list(ids).count(name) > 1)
            raise InvalidArgumentError(f"ids must be unique; found {twice!r} twice")
        for path in paths:
            find_videos([path])  # raises for a file that is not there
        return list(zip(ids, paths, strict=True))

    def _add(
        self, chosen: list[tuple[str, Path]], skipped: list[str], progress: Progress
    ) -> AddReport:
        total = len(chosen)
        odd = [_printable(path) for _, path in chosen if not _is_utf8(str(path.absolute()))]
        failed = [FailedVideo(name, f"{name}: is no UTF-8 path; rename it") for name in odd]
        chosen = [(name, path) for name, path in chosen if _is_utf8(str(path.absolute()))]
        added: list[str] = []
        warnings: list[FailedVideo] = []
        batch: list[tuple[str, Path, VideoFrames]] = []
        try:
            for (video_id, path), outcome in zip(chosen, self._read(chosen), strict=True):
                if isinstance(outcome, VideoError):
                    failed.append(FailedVideo(str(path), str(outcome)))
                else:
                    batch.append((video_id, path, outcome))
                    if outcome.warnings:
                        warnings.append(FailedVideo(str(path), "; ".join(outcome.warnings)))
                if len(batch) == self.model.max_batch:
                    # Emptied first: a batch that cannot be encoded must not be tried again.
                    full, batch = batch, []
                    added += self._encode_into_gallery(full)
                progress(len(added) + len(batch) + len(failed), total, len(failed))
        finally:
            if batch:
                added += self._encode_into_gallery(batch)
        return AddReport(tuple(added), tuple(skipped), tuple(failed), tuple(warnings))

    def _read(self, chosen: list[tuple[str, Path]]) -> Iterator[VideoFrames | VideoError]:
        paths = [path for _, path in chosen]
        outcomes = read_videos(
            paths,
            self.sampling,
            self._image_size,
            reader=self._reader,
            num_threads=self._threads,
        )
        for _, outcome in outcomes:
            yield outcome

    def _encode_into_gallery(self, batch: list[tuple[str, Path, VideoFrames]]) -> list[str]:
        features = self.encode_videos([frames for _, _, frames in batch])
        videos = [
            GalleryVideo(
                id=video_id,
                path=str(path.absolute()),
                duration_s=frames.duration_s,
                frame_times_s=tuple(float(time) for time in frames.times_s),
            )
            for video_id, path, frames in batch
        ]
        # Duplicates that are here now were meant to be replaced; only with the new features
        # in hand is the old video let go.
        self.gallery.add(videos, features, replace=True)
        return [video.id for video in videos]

    def _text_results(
        self, row: int, texts: TextFeatures, scores: Scores, snapshot: Snapshot, k: int
    ) -> list[SearchResult]:
        results = []
        for rank, n in enumerate(_best(scores.logits[row], k), start=1):
            frames = snapshot.features.frame_features[n].astype(np.float32)
            entry = snapshot.videos[n]
            grains = {name: float(grain[row, n]) for name, grain in scores.grains.items()}
            results.append(
                SearchResult(
                    rank=rank,
                    id=entry.id,
                    path=entry.path,
                    score=float(scores.logits[row, n]),
                    grains=GrainScores(**grains),
                    best_frame_time_s=_best_frame(frames @ texts.sentence_features[row], entry),
                )
            )
        return results


def _find(snapshot: Snapshot, hit: Hit) -> int:
    """Place of a video in a snapshot. Raises GalleryError where it is not there."""
    video_id = hit.id if isinstance(hit, SearchResult) else hit
    if not isinstance(video_id, str):
        raise InvalidArgumentError(
            f"expected a search result or an id (str), found {type(video_id).__name__}"
        )
    for n, video in enumerate(snapshot.videos):
        if video.id == video_id:
            return n
    raise GalleryError(
        f"no video {video_id!r} in the gallery of {len(snapshot)}; expected an id or a search "
        "result of this gallery"
    )


def _best(scores: npt.NDArray[np.floating[Any]], k: int) -> npt.NDArray[np.intp]:
    """Indices of the k highest scores, best first; of equal ones the one added first."""
    k = min(k, len(scores))
    threshold = np.partition(scores, -k)[-k]
    candidates = np.flatnonzero(scores >= threshold)
    order = np.argsort(-scores[candidates], kind="stable")[:k]
    return candidates[order]


def _best_frame(similarity: npt.NDArray[np.floating[Any]], video: GalleryVideo) -> float:
    """Time of the most similar valid frame, seconds. ``similarity``: [F], padding last."""
    valid = similarity[: len(video.frame_times_s)]
    return video.frame_times_s[int(valid.argmax())]


def _is_utf8(name: str) -> bool:
    """Whether a name can be stored; a file name can hold bytes that are no text."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(path: Path) -> str:
    return str(path).encode("utf-8", "backslashreplace").decode()


def _check_k(k: int) -> None:
    if k < 1:
        raise InvalidArgumentError(f"k is {k}: expected at least 1")


def _no_progress(done: int, total: int, failed: int) -> None:
    del done, total, failed
