"""Explanations of hits of a gallery, and their pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike

import numpy as np

from xclip_deploy.errors import GalleryError, InvalidArgumentError, VideoError
from xclip_deploy.runtime.arguments import as_instance, as_text, shown
from xclip_deploy.runtime.arrays import slices
from xclip_deploy.runtime.deployed_model import DeployedModel
from xclip_deploy.runtime.evidence.contrast import Contrast
from xclip_deploy.runtime.evidence.explanation import Explanation, explain_video
from xclip_deploy.runtime.evidence.picture import draw_explanation
from xclip_deploy.runtime.evidence.words import TokenKind, without, words_of
from xclip_deploy.runtime.features import TextFeatures
from xclip_deploy.runtime.gallery import Snapshot
from xclip_deploy.runtime.gallery.records import Rows
from xclip_deploy.runtime.moments import frame_at
from xclip_deploy.runtime.results import SearchResult
from xclip_deploy.runtime.scorer_weights import ScorerWeights
from xclip_deploy.runtime.theme import Theme
from xclip_deploy.runtime.tokenizer import clean_text
from xclip_deploy.runtime.video import VideoFrames, resize_and_crop

Hit = SearchResult | str
"""A search result, or the id of a video in the gallery."""
_ROWS_AT_ONCE = 2048
"""Segments of one video whose features are in memory at a time."""
_SIDE = 224
"""Side of the pictures of a segment, pixels."""
ReadVideo = Callable[[str], VideoFrames]


def explain_hits(
    query: str,
    hits: Sequence[Hit],
    snapshot: Snapshot,
    model: DeployedModel,
    weights: ScorerWeights,
) -> list[Explanation]:
    """Explain the scores of ``hits`` for a text; see :meth:`Retriever.explain`.

    Raises GalleryError for a video that is not there, InvalidArgumentError for a text without a
    word.
    """
    if not clean_text(as_text("query", query)):
        raise InvalidArgumentError(f"the text {query!r:.200} holds no word to explain")
    found = [_find(snapshot, hit) for hit in hits]
    token_ids = model.tokenizer.encode([query], model.config.max_words)
    words = words_of(model.tokenizer, token_ids[0])
    proper = [word for word in words if word.kind is TokenKind.WORD]
    variants = [token_ids[0], *(without(token_ids[0], word) for word in proper)]
    texts = model.encode_token_ids(np.stack(variants))
    rows = np.array([_best(rows, texts[:1], snapshot, model) for rows in found], np.int64)
    features = snapshot.features(rows)
    return [
        explain_video(query, words, texts, video, features[n : n + 1], weights, model.config)
        for n, video in enumerate(snapshot.videos(rows))
    ]


def plot_explanation(
    explanation: Explanation | Contrast,
    path: str | PathLike[str],
    read: ReadVideo,
    theme: Theme = "light",
) -> None:
    """Read the frames again and write the explanation as a PNG, on a light or dark page.

    ``read``: returns a file's frames as they were encoded. A file that is gone or has changed
    leaves grey boxes and a note. Raises as :func:`draw_explanation` does.
    """
    kinds = (Explanation, Contrast)
    as_instance("explanation", explanation, kinds, "what retriever.explain gives")
    parts = explanation.explanations if isinstance(explanation, Contrast) else (explanation,)
    frames, notes = zip(*(_thumbnails(part, read) for part in parts), strict=True)
    draw_explanation(explanation, path, frames, notes, theme=theme)


def _thumbnails(explanation: Explanation, read: ReadVideo) -> tuple[VideoFrames | None, str | None]:
    """Return the encoded frames, or a note that says why they are missing."""
    if explanation.path is None:
        return None, "no frames: the features were added without a file"
    try:
        if explanation.num_segments > 1:
            return _frames_of_segment(explanation), None
        frames = read(explanation.path)
    except VideoError as error:
        return None, f"no frames: {error}"
    times = tuple(frame.time_s for frame in explanation.frames if frame.time_s is not None)
    if times != tuple(float(time) for time in frames.times_s):
        return None, f"no frames: {explanation.path} is another video than was encoded"
    return frames, None


def _frames_of_segment(explanation: Explanation) -> VideoFrames:
    """Read the frames of a segment of a long video. Raises VideoError."""
    assert explanation.path is not None
    times = [frame.time_s for frame in explanation.frames if frame.time_s is not None]
    pictures = [
        resize_and_crop(frame_at(explanation.path, time_s, expected=explanation.file), _SIDE)
        for time_s in times
    ]
    duration_s = times[-1] if explanation.end_s is None else explanation.end_s
    return VideoFrames(
        frames=np.stack(pictures),
        times_s=np.array(times, np.float64),
        frame_numbers=np.arange(len(times)),
        duration_s=duration_s,
        frame_rate=len(times) / max(duration_s - explanation.start_s, 1e-3),
    )


def _find(snapshot: Snapshot, hit: Hit) -> Rows:
    """Return the row of a hit's segment, or all rows of an id.

    Raises GalleryError for what is not in the snapshot.
    """
    video_id = hit.id if isinstance(hit, SearchResult) else hit
    if not isinstance(video_id, str):
        raise InvalidArgumentError(
            f"a video is {shown(video_id)}; expected a search result or an id (str)"
        )
    rows = snapshot.segments([video_id]).get(video_id)
    if rows is None:
        raise GalleryError(
            f"no video {video_id!r:.200} in the gallery of {snapshot.num_videos}; expected an id "
            "or a search result of this gallery"
        )
    if not isinstance(hit, SearchResult):
        return rows
    groups = snapshot.groups()
    numbers = np.zeros(1, np.int64) if groups is None else groups.segments[groups.places(rows)]
    row: Rows = rows[numbers == hit.segment]
    if not len(row):
        raise GalleryError(
            f"no segment {hit.segment} of {video_id!r:.200} in the gallery, which holds "
            f"{len(rows)}; it was indexed again: search again"
        )
    return row


def _best(rows: Rows, text: TextFeatures, snapshot: Snapshot, model: DeployedModel) -> int:
    """Return the row with the best score; of equal ones the first."""
    if len(rows) == 1:
        return int(rows[0])
    scores = [
        model.score(text, snapshot.features(rows[part])).logits[0]
        for part in slices(len(rows), _ROWS_AT_ONCE)
    ]
    return int(rows[np.argmax(np.concatenate(scores))])
