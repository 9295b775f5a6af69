"""Evaluate moments by searches in a gallery: index a split's videos, then rank by a retriever."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xclip_deploy.errors import DatasetError
from xclip_deploy.runtime.arguments import as_instance, as_share
from xclip_deploy.runtime.datasets.moments import MomentSplit
from xclip_deploy.runtime.evaluation.moments import Prediction, Ranking
from xclip_deploy.runtime.indexing import IndexReport
from xclip_deploy.runtime.progress import ProgressFunction
from xclip_deploy.runtime.results import SearchResult
from xclip_deploy.runtime.retriever import Retriever
from xclip_deploy.runtime.video.segmentation import Segmentation

_SEARCH: dict[str, Any] = {"group": "moment"}
"""Keywords of searches that list moments. In a gallery of whole videos, each hit is its video from
start to end."""


def index_moments(
    retriever: Retriever,
    split: MomentSplit,
    segmentation: Segmentation | None = None,
    *,
    max_unreadable_share: float = 0.1,
    workers: int | None = None,
    progress: bool | ProgressFunction = False,
) -> IndexReport:
    """Bring a gallery up to date with the videos of a split; those it has are skipped.

    Args:
        retriever: Retriever whose gallery is filled.
        split: Videos to index.
        segmentation: Policy by which the videos are cut; None takes the gallery's, or windows of
            the model's span.
        max_unreadable_share: Largest share of videos that may be unreadable, 0 to 1.
        workers: Videos decoded at the same time; None means one per core.
        progress: Progress as :meth:`Retriever.add` takes it.

    Raises:
        DatasetError: More videos than allowed, or all, are unreadable.
        InvalidArgumentError: An argument is out of range.
        GalleryError: The gallery cannot be written, or is cut by another policy.
    """
    as_instance("retriever", retriever, Retriever, "a Retriever")
    as_instance("split", split, MomentSplit, "a MomentSplit, as open_moments gives")
    share = as_share("max_unreadable_share", max_unreadable_share)
    paths = [video.path for video in split.videos]
    report = retriever.add(paths, segment=segmentation, workers=workers, progress=progress)
    unread = len(report.failed)
    if unread and (unread > share * len(paths) or unread == len(paths)):
        raise DatasetError(
            f"{split.name}: {unread} of {len(paths)} videos cannot be read, the first because: "
            f"{report.failed[0].reason}; expected at most {share:.1%}; mend the files or raise "
            "max_unreadable_share"
        )
    return report


class SearchRanker:
    """Ranker of moments that searches a retriever's gallery.

    Videos have the split's ids where the gallery holds the split's files, and the gallery's ids
    otherwise: other videos of a gallery take part as wrong answers.
    """

    def __init__(
        self, retriever: Retriever, split: MomentSplit, search: Mapping[str, Any] | None = None
    ) -> None:
        """Look up which videos of the gallery are those of the split.

        ``search``: further keywords of every search, such as those of :class:`SearchOptions`.
        """
        self._retriever = retriever
        self._search = {**_SEARCH, **(search or {})}
        name_of = {_absolute(video.path): video.id for video in split.videos}
        self._name_of: dict[str, str] = {}
        """Id in the split, by id in the gallery."""
        self._gallery_id: dict[str, str] = {}
        for video in retriever.gallery:
            for file in video.files:
                name = name_of.get(_absolute(file.path))
                if name is not None:
                    self._name_of.setdefault(video.id, name)
                    self._gallery_id[name] = video.id

    def rank(self, texts: Sequence[str], k: int) -> list[Ranking]:
        """Return at most ``k`` moments of all videos for each text, best first."""
        found = self._retriever.search_batch(texts, k, **self._search)
        return [self._ranking(hits) for hits in found]

    def rank_within(self, texts: Sequence[str], video_ids: Sequence[str], k: int) -> list[Ranking]:
        """Return at most ``k`` moments for each text, all in the video given with it.

        A video that the gallery lacks gives none.
        """
        rankings: list[Ranking] = []
        for text, video_id in zip(texts, video_ids, strict=True):
            gallery_id = self._gallery_id.get(video_id)
            if gallery_id is None:
                rankings.append([])
                continue
            hits = self._retriever.search(text, k, within=gallery_id, **self._search)
            rankings.append([found._replace(video_id=video_id) for found in self._ranking(hits)])
        return rankings

    def _ranking(self, hits: Iterable[SearchResult]) -> list[Prediction]:
        return [_prediction(hit, self._name_of.get(hit.id, hit.id)) for hit in hits]


def _prediction(hit: SearchResult, video_id: str) -> Prediction:
    """Return a hit as a prediction: its refined range, else its window, else its whole video."""
    if hit.range is not None:
        start_s, end_s = hit.range.start_s, hit.range.end_s
    else:
        start_s, end_s = hit.start_s, hit.end_s or hit.best_frame_time_s
    return Prediction(video_id, start_s, end_s, hit.score)


def _absolute(path: str | Path) -> str:
    return str(Path(path).resolve())
