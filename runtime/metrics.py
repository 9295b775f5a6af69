"""Retrieval metrics: recall at 1, 5 and 10, median and mean rank, in both directions.

They equal those of X-CLIP and CLIP4Clip to the last bit (``metrics.py`` and ``eval_epoch`` of
their code), so that numbers compare with published ones. The authors count in two ways:

Videos with one caption each (``compute_metrics``).
    The scores of a query are sorted. Every position that holds the score of the right answer
    is a rank. An answer that ties with n - 1 others has n consecutive ranks, and its query
    counts n times. A model with equal scores for all pairs thus gets the recall of chance.
    Recalls are in double precision. The median of an even number is the mean of the middle
    two.

Videos with several captions (``tensor_text_to_video_metrics``, ``tensor_video_to_text_sim``).
    In text to video, every caption is a query with one right video and one rank. Recalls are
    rounded to single precision. The median of an even number is the lower of the middle two.
    The authors' sort is unstable and leaves ties open; here the earlier video goes first. In
    video to text, a video's score against another video is the highest among its captions.
    There are as many candidates as videos, counted as with one caption each.

rank = 1 + the number of scores above the right answer's. Nothing is sorted or copied. The
memory beyond the similarity matrix is a few blocks of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import InvalidArgumentError
from xclip_deploy.runtime.arrays import FloatArray, check_finite, slices

Queries = Literal["texts", "videos"]
"""Side of the queries: ``texts`` for text to video, ``videos`` for video to text."""

_BLOCK_ELEMENTS = 1 << 22
"""Similarities ranked at once: 32 MiB per intermediate in double precision."""

_Part = Callable[[slice, slice], FloatArray]
"""Function that returns some rows (texts) and columns (videos) of the scores to rank."""
_DoublePart = Callable[[slice, slice], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class RetrievalMetrics:
    """Retrieval metrics of one direction."""

    recall_at_1: float
    """Percentage of queries with the right answer first."""
    recall_at_5: float
    """Percentage of queries with the right answer among the first five."""
    recall_at_10: float
    """Percentage of queries with the right answer among the first ten."""
    median_rank: float
    """Median rank of the right answers; 1 is best."""
    mean_rank: float
    """Mean rank of the right answers; 1 is best."""
    num_queries: int

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain numbers for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class RetrievalResult:
    """Retrieval metrics of both directions."""

    text_to_video: RetrievalMetrics
    """Metrics with captions as queries and videos as candidates."""
    video_to_text: RetrievalMetrics
    """Metrics with videos as queries and each video's best caption as a candidate."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain dictionaries and numbers for JSON."""
        return asdict(self)


def retrieval_metrics(
    similarity: FloatArray,
    video_of_caption: npt.NDArray[np.integer[Any]],
    *,
    block_elements: int = _BLOCK_ELEMENTS,
) -> RetrievalResult:
    """Rank videos by text and texts by video. The module's docstring gives the formulas.

    Args:
        similarity: Floats [T, V]: score of every caption and video. Higher is closer.
        video_of_caption: Integers [T]: column of each caption's video. Every video has at
            least one caption. Once a video has two, all count as videos with several.
        block_elements: Similarities ranked at once, at least a row or column of them. It bounds
            the memory and does not change the result.

    Raises:
        InvalidArgumentError: A shape is wrong, a similarity is NaN or infinite, or a video has
            no caption.
    """
    _check(similarity, video_of_caption, block_elements)

    def part(rows: slice, columns: slice) -> FloatArray:
        return similarity[rows, columns]

    return RetrievalResult(
        _text_to_video(part, video_of_caption, similarity.shape, block_elements),
        _video_to_text(part, video_of_caption, similarity.shape, block_elements),
    )


def dual_softmax(
    similarity: FloatArray, queries: Queries, *, temperature: float = 1.0
) -> npt.NDArray[np.float64]:
    """Re-score by the inverted (dual) softmax, for one direction.

    ``s' = s · softmax(s / temperature)``, with the softmax over the **queries**: over the texts
    (axis 0) for text to video, over the videos (axis 1) for video to text. It holds back a
    candidate that is close to every query (a "hub"). Cheng et al., "Improving Video-Text
    Retrieval by Multi-Stream Corpus Alignment and Dual Softmax Loss" (CAMoE, 2021), section 3.3,
    have a further constant factor, the number of queries. It changes no rank. The inverted
    softmax is due to Smith et al., "Offline bilingual word vectors, orthogonal transformations
    and the inverted softmax", ICLR 2017.

    The score of a pair depends on all queries of the set. A single query in production cannot
    have it, so that results with and without it are not comparable. It multiplies by the
    similarities, and so supposes that those of right pairs are positive.

    Args:
        similarity: Floats [T, V].
        queries: ``texts`` or ``videos``.
        temperature: Temperature in units of ``similarity``. Logits include their scale, so that
            1 is the softmax that the model was trained with.

    Returns:
        Re-scored similarities, float64 [T, V].

    Raises:
        InvalidArgumentError: A similarity is NaN or infinite, ``queries`` is unknown, or the
            temperature is not above 0.
    """
    everything = slice(None)
    _check_matrix(similarity, _BLOCK_ELEMENTS)
    return _rescored(similarity, queries, temperature, _BLOCK_ELEMENTS)(everything, everything)


def dual_softmax_metrics(
    similarity: FloatArray,
    video_of_caption: npt.NDArray[np.integer[Any]],
    *,
    temperature: float = 1.0,
    block_elements: int = _BLOCK_ELEMENTS,
) -> RetrievalResult:
    """Compute :func:`retrieval_metrics` after :func:`dual_softmax`, direction by direction.

    The re-scored matrices are never whole in memory. Report these metrics apart from those of
    the similarities themselves. Raises InvalidArgumentError as the two functions do.
    """
    _check(similarity, video_of_caption, block_elements)
    shape = similarity.shape
    by_text = _rescored(similarity, "texts", temperature, block_elements)
    by_video = _rescored(similarity, "videos", temperature, block_elements)
    return RetrievalResult(
        _text_to_video(by_text, video_of_caption, shape, block_elements),
        _video_to_text(by_video, video_of_caption, shape, block_elements),
    )


class _RankCounts:
    """Counts of queries by rank, in O(candidates) memory however many ties there are."""

    def __init__(self, num_candidates: int) -> None:
        self._steps = np.zeros(num_candidates + 1, dtype=np.int64)

    def add(self, first: npt.NDArray[np.int64], count: npt.NDArray[np.int64] | int) -> None:
        """Count ``count`` ranks for every query, from ``first`` on; [queries], ranks from 0."""
        np.add.at(self._steps, first, 1)
        np.add.at(self._steps, first + count, -1)

    def metrics(self, num_queries: int, *, is_single_precision: bool) -> RetrievalMetrics:
        """Sum up in one of the authors' two ways of counting."""
        counts = np.cumsum(self._steps[:-1])  # [candidates]: ranks from 0
        below = np.cumsum(counts)
        total = int(below[-1])
        rank_sum = int(counts @ np.arange(len(counts)))
        hits = [int(counts[:k].sum()) for k in (1, 5, 10)]
        upper = int(np.searchsorted(below, total // 2, side="right"))
        lower = int(np.searchsorted(below, (total - 1) // 2, side="right"))
        if is_single_precision:
            recalls = [float(np.float32(hit * 100) / np.float32(total)) for hit in hits]
            median, mean = float(lower + 1), (rank_sum + total) / total
        else:
            recalls = [hit * 100 / total for hit in hits]
            # The mean of ranks from 1 differs from this in the last bit.
            median, mean = (lower + upper) / 2 + 1, rank_sum / total + 1
        at_1, at_5, at_10 = recalls
        return RetrievalMetrics(at_1, at_5, at_10, median, mean, num_queries)


def _text_to_video(
    part: _Part,
    video_of_caption: npt.NDArray[np.integer[Any]],
    shape: tuple[int, ...],
    block_elements: int,
) -> RetrievalMetrics:
    num_texts, num_videos = shape
    has_several = num_texts > num_videos
    ranks = _RankCounts(num_videos)
    columns = np.arange(num_videos)
    for rows in slices(num_texts, block_elements // num_videos):
        scores = part(rows, slice(None))  # [texts, V]
        answers = video_of_caption[rows, None]
        right = np.take_along_axis(scores, answers, axis=1)
        above = (scores > right).sum(axis=1)
        is_equal = scores == right
        if has_several:
            ranks.add(above + (is_equal & (columns < answers)).sum(axis=1), 1)
        else:
            ranks.add(above, is_equal.sum(axis=1))
    return ranks.metrics(num_texts, is_single_precision=has_several)


def _video_to_text(
    part: _Part,
    video_of_caption: npt.NDArray[np.integer[Any]],
    shape: tuple[int, ...],
    block_elements: int,
) -> RetrievalMetrics:
    num_texts, num_videos = shape
    # Captions of one video next to each other, videos in order.
    order = np.argsort(video_of_caption, kind="stable")
    starts = np.searchsorted(video_of_caption[order], np.arange(num_videos))
    ranks = _RankCounts(num_videos)
    for columns in slices(num_videos, block_elements // num_texts):
        scores = part(slice(None), columns)[order]  # [T, videos]
        best = np.maximum.reduceat(scores, starts, axis=0)  # [V, videos]
        queries = np.arange(columns.start, columns.stop)
        right = best[queries, queries - columns.start]
        ranks.add((best > right).sum(axis=0), (best == right).sum(axis=0))
    return ranks.metrics(num_videos, is_single_precision=False)


def _rescored(
    similarity: FloatArray, queries: Queries, temperature: float, block_elements: int
) -> _DoublePart:
    """Take the sums over all queries in blocks. Return a function that re-scores any part."""
    if queries not in get_args(Queries):
        raise InvalidArgumentError(f"queries {queries!r}: expected texts or videos")
    if not (np.isfinite(temperature) and temperature > 0):
        raise InvalidArgumentError(f"temperature {temperature}: expected a number above 0")
    axis = 0 if queries == "texts" else 1
    # Double precision holds weights down to exp(-700). Weights of zero would tie.
    log_sums = np.empty(similarity.shape[1 - axis])
    for candidates in slices(len(log_sums), block_elements // similarity.shape[axis]):
        block = similarity[:, candidates] if axis == 0 else similarity[candidates]
        scaled = block.astype(np.float64) / temperature
        highest = scaled.max(axis=axis)
        sums = np.exp(scaled - np.expand_dims(highest, axis)).sum(axis=axis)
        log_sums[candidates] = highest + np.log(sums)

    def part(rows: slice, columns: slice) -> npt.NDArray[np.float64]:
        scores = similarity[rows, columns].astype(np.float64)
        sums = log_sums[columns] if axis == 0 else log_sums[rows, None]
        rescored: npt.NDArray[np.float64] = scores * np.exp(scores / temperature - sums)
        return rescored

    return part


def _check(
    similarity: FloatArray, video_of_caption: npt.NDArray[np.integer[Any]], block_elements: int
) -> None:
    if block_elements < 1:
        raise InvalidArgumentError(f"block_elements {block_elements}: expected at least 1")
    _check_matrix(similarity, block_elements)
    num_texts, num_videos = similarity.shape
    is_integer = np.issubdtype(video_of_caption.dtype, np.integer)
    if not is_integer or video_of_caption.shape != (num_texts,):
        raise InvalidArgumentError(
            f"video_of_caption is {video_of_caption.dtype} {list(video_of_caption.shape)}, "
            f"expected integers [{num_texts}], one a row of similarity"
        )
    if not 0 <= video_of_caption.min() <= video_of_caption.max() < num_videos:
        raise InvalidArgumentError(
            f"video_of_caption runs from {video_of_caption.min()} to {video_of_caption.max()}, "
            f"expected columns of similarity, 0 to {num_videos - 1}"
        )
    bare = np.flatnonzero(np.bincount(video_of_caption, minlength=num_videos) == 0)
    if bare.size:
        raise InvalidArgumentError(
            f"{bare.size} of {num_videos} videos have no caption, first video {bare[0]}; "
            "expected at least one each"
        )


def _check_matrix(similarity: FloatArray, block_elements: int) -> None:
    is_floating = np.issubdtype(similarity.dtype, np.floating)
    if not is_floating or similarity.ndim != 2 or 0 in similarity.shape:
        raise InvalidArgumentError(
            f"similarity is {similarity.dtype} {list(similarity.shape)}, "
            "expected floats [texts, videos], at least one each"
        )
    for rows in slices(len(similarity), block_elements // similarity.shape[1]):
        check_finite("similarity", similarity[rows])
