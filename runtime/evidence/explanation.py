"""Explanation of a video's score for a text."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from xclip_deploy.runtime.arrays import Float64Array, first_best
from xclip_deploy.runtime.evidence.decomposition import Decomposition, decompose
from xclip_deploy.runtime.evidence.moments import BestMoment, find_moment
from xclip_deploy.runtime.evidence.words import (
    TokenKind,
    Word,
    max_by_word,
    sum_by_word,
)
from xclip_deploy.runtime.features import TextFeatures, VideoFeatures
from xclip_deploy.runtime.gallery import GalleryVideo, VideoFile
from xclip_deploy.runtime.gallery.records import times_of
from xclip_deploy.runtime.grain_scores import GrainScores
from xclip_deploy.runtime.grains import GRAINS, Grain
from xclip_deploy.runtime.model_config import ModelConfig
from xclip_deploy.runtime.presentation import brief, time_text
from xclip_deploy.runtime.scorer_weights import ScorerWeights


@dataclass(frozen=True)
class WordEvidence:
    """The evidence of one word of the text.

    Contributions are in points of the score, not in units of a grain: they add up over grains.
    """

    text: str
    kind: TokenKind
    """Kind of token; the published scorer counts start, end and padding too."""
    positions: tuple[int, ...]
    """Token positions; a word of several byte-pair pieces has several."""
    similarity: float
    """Largest similarity of its tokens to a frame that is not padding."""
    best_frame: int
    """Index of that frame among the sampled ones."""
    score_without: float | None
    """Score of the text without the word; None for start, end and padding."""
    points: dict[str, float]
    """Name of each known grain that reads words -> points; 0 where the model lacks the grain."""

    @property
    def contribution(self) -> float:
        """Points of the score, of all grains that the word has a part in."""
        return sum(self.points.values())

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries, lists and numbers, for JSON."""
        return plain_part(self) | {"kind": self.kind.value, "positions": list(self.positions)}


@dataclass(frozen=True)
class FrameEvidence:
    """The evidence of one frame of the video; contributions are in points."""

    time_s: float | None
    """Seconds from the video's start; None for padding, which the published scorer counts."""
    similarity: float
    """Similarity to the sentence, which selects the best moment."""
    points: dict[str, float]
    """Name of each known grain that reads frames -> points; 0 where the model lacks the grain."""

    @property
    def contribution(self) -> float:
        """Points of the score, of all grains that the frame has a part in."""
        return sum(self.points.values())

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries and numbers, for JSON."""
        return plain_part(self)


@dataclass(frozen=True, eq=False)
class Explanation:
    """An explanation of a video's score for a text. ``str()`` puts it into a sentence.

    The score is the sum of the grains in points. A grain that reads words is the sum over
    :attr:`words`, one that reads frames the sum over :attr:`frames`; one that reads both is
    either sum. Video-sentence is one number. ``decomposition`` holds the same by tokens, with
    every similarity and weight.
    """

    query: str
    video_id: str
    path: str | None
    score: float
    """Score of the scorer, computed in FP64."""
    grains: GrainScores
    words: tuple[WordEvidence, ...]
    frames: tuple[FrameEvidence, ...]
    """Every frame, with padding at the end."""
    best_moment: BestMoment
    decomposition: Decomposition
    segment: int = 0
    """Number of the explained segment within its video; 0 for a video that is not cut."""
    num_segments: int = 1
    """Number of the video's segments."""
    start_s: float = 0.0
    """Start of the segment, in seconds from the video's start."""
    end_s: float | None = None
    """End of the segment, seconds; None where the duration is not known."""
    file: VideoFile | None = None
    """The video's file, as it was when it was encoded."""

    @property
    def points(self) -> dict[str, float]:
        """The score's parts: grain name to points of the score."""
        return {
            name: value * self.decomposition.points
            for name, value in self.decomposition.grains.items()
        }

    @property
    def best_frame_time_s(self) -> float:
        """Time of the frame most similar to the text, which a search names too, in seconds."""
        return self.best_moment.best_frame_time_s

    @property
    def missing_words(self) -> tuple[WordEvidence, ...]:
        """Words that the score does not need: without them it would be no lower.

        Punctuation is not listed. Each word is judged by leaving it out, as similarities cannot
        tell: the text encoder mixes a word with those before it, so “circle” after “green” fits a
        green square.
        """
        return tuple(
            word
            for word in self.words
            if word.score_without is not None
            and word.score_without >= self.score
            and word.text.strip(string.punctuation)
        )

    @property
    def unfound_words(self) -> tuple[WordEvidence, ...]:
        """The missing words that also add nothing to the score: nothing was found for them.

        A model whose grains read no words gives words no points, and lists none.
        """
        reads_words = any(GRAINS[Grain(name)].reads_words for name in self.grains)
        return tuple(word for word in self.missing_words if reads_words and word.contribution <= 0)

    @property
    def word_frame_similarity(self) -> Float64Array:
        """Largest similarity of each word's tokens, [words, frames] in the order of both."""
        return max_by_word(self.decomposition.similarity, self._groups())

    def _groups(self) -> list[Word]:
        return [Word(word.text, word.kind, word.positions) for word in self.words]

    def __repr__(self) -> str:
        missing = [word.text for word in self.missing_words]
        return brief(
            self, query=self.query, video_id=self.video_id, score=self.score, missing_words=missing
        )

    def __str__(self) -> str:
        parts = ", ".join(
            f"{Grain(name).spoken} {value:.2f}" for name, value in self.points.items()
        )
        best = time_text(self.best_frame_time_s, 1)
        found = f"best frame {best}, best moment {self.best_moment}"
        if self.missing_words:
            found += f"; no lower without {_quoted(self.missing_words)}"
        if self.unfound_words:
            found += f"; nothing found for {_quoted(self.unfound_words)}"
        where = ""
        if self.num_segments > 1:
            span = f"{time_text(self.start_s, 1)} to {time_text(self.end_s, 1)}"
            where = f"segment {self.segment + 1} of {self.num_segments}, {span}: "
        return f"{where}score {self.score:.2f} = {parts}; {found}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain dictionaries, lists and numbers, for JSON."""
        return {
            "query": self.query,
            "video_id": self.video_id,
            "path": self.path,
            "segment": self.segment,
            "num_segments": self.num_segments,
            "start_s": self.start_s,
            "end_s": self.end_s,
            "score": self.score,
            "grains": self.grains.to_dict(),
            "points": self.points,
            "summary": str(self),
            "missing_words": [word.text for word in self.missing_words],
            "best_moment": asdict(self.best_moment),
            "words": [word.to_dict() for word in self.words],
            "frames": [frame.to_dict() for frame in self.frames],
            "decomposition": self.decomposition.to_dict(),
        }


def _quoted(words: Iterable[WordEvidence]) -> str:
    return ", ".join(f"“{word.text}”" for word in words)


def explain_video(
    query: str,
    words: Sequence[Word],
    texts: TextFeatures,
    entry: GalleryVideo,
    video: VideoFeatures,
    weights: ScorerWeights,
    config: ModelConfig,
) -> Explanation:
    """Explain the score of one text and one video.

    ``words``: the words of the text. ``texts``: features of the text, then of the text without
    each word of kind WORD, in their order. ``video``: features of one video.
    """
    parts = decompose(texts[:1], video, weights, config)
    rows = (decompose(texts[n : n + 1], video, weights, config) for n in range(1, len(texts)))
    without = [next(rows).score if word.kind is TokenKind.WORD else None for word in words]
    valid = int(video.num_frames[0])
    seen = max_by_word(parts.similarity[:, :valid], words)  # [words, frames]
    by_word = {
        name: sum_by_word(part, words) * parts.points for name, part in parts.by_word.items()
    }
    by_frame = {name: part * parts.points for name, part in parts.by_frame.items()}
    word_evidence = tuple(
        WordEvidence(
            word.text,
            word.kind,
            word.positions,
            similarity=float(seen[n].max()),
            best_frame=first_best(seen[n]),
            score_without=without[n],
            points=_points_at(n, by_word, (g for g in Grain if GRAINS[g].reads_words)),
        )
        for n, word in enumerate(words)
    )
    frame_evidence = tuple(
        FrameEvidence(
            entry.frame_times_s[n] if n < valid else None,
            float(parts.sentence_similarity[n]),
            _points_at(n, by_frame, (g for g in Grain if GRAINS[g].reads_frames)),
        )
        for n in range(len(parts.sentence_similarity))
    )
    start_s, end_s = times_of(entry)
    return Explanation(
        query,
        entry.id,
        entry.path,
        parts.score,
        GrainScores(parts.grains),
        word_evidence,
        frame_evidence,
        find_moment(parts.sentence_similarity[:valid], entry.frame_times_s, end_s, start_s),
        parts,
        entry.segment,
        entry.num_segments,
        start_s,
        end_s,
        entry.files[0] if entry.files else None,
    )


def _points_at(
    n: int, points: Mapping[str, Float64Array], grains: Iterable[Grain]
) -> dict[str, float]:
    """Return the points of word or frame ``n`` by grain, 0 for a grain that is not there."""
    names = [grain.value for grain in grains]
    return {name: float(points[name][n]) if name in points else 0.0 for name in names}


def plain_part(part: Any) -> dict[str, Any]:  # noqa: ANN401 - any record with points
    """Return the fields of a record of a word or frame, each grain's points among them."""
    content: dict[str, Any] = asdict(part)
    points = content.pop("points")
    return {**content, **points} | {"contribution": part.contribution}
