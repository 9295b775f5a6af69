"""Why a video has the score that it has for a text."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

import numpy as np

from xclip_deploy.runtime.evidence.decomposition import Decomposition, Wide, decompose
from xclip_deploy.runtime.evidence.moments import Moment, find_moment
from xclip_deploy.runtime.evidence.words import (
    TokenKind,
    Word,
    max_by_word,
    sum_by_word,
)
from xclip_deploy.runtime.features import TextFeatures, VideoFeatures
from xclip_deploy.runtime.gallery import GalleryVideo
from xclip_deploy.runtime.model_config import ModelConfig
from xclip_deploy.runtime.results import GrainScores
from xclip_deploy.runtime.scorer_weights import ScorerWeights
from xclip_deploy.runtime.video import VideoFrames


@dataclass(frozen=True)
class WordEvidence:
    """What one word of the text has to do with the video.

    Contributions are in points of the score, not in units of a grain: they can be added up
    over grains.
    """

    text: str
    kind: TokenKind
    """Start, end and padding are no words, and the published scorer counts them too."""
    positions: tuple[int, ...]
    """Token positions; a word of several byte-pair pieces has several."""
    similarity: float
    """Largest of its tokens to a frame that is not padding."""
    best_frame: int
    """Number of that frame among the sampled ones."""
    score_without: float | None
    """The score of the text without the word; None for what is no word."""
    video_word: float
    frame_word: float

    @property
    def contribution(self) -> float:
        """Points of the score, of both grains that the word has a part in."""
        return self.video_word + self.frame_word


@dataclass(frozen=True)
class FrameEvidence:
    """What one frame of the video has to do with the text; contributions in points."""

    time_s: float | None
    """Seconds from the video's start; None for padding, which the published scorer counts."""
    similarity: float
    """To the sentence: what the best moment is found by."""
    frame_sentence: float
    frame_word: float

    @property
    def contribution(self) -> float:
        """Points of the score, of both grains that the frame has a part in."""
        return self.frame_sentence + self.frame_word


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why a video has its score for a text. ``str()`` says it in a sentence.

    The score is the sum of four grains in points; video-sentence is one number, video-word the
    sum over :attr:`words`, frame-sentence that over :attr:`frames`, and frame-word the sum over
    either. ``decomposition`` has the same by tokens, with every similarity and weight.
    """

    query: str
    video_id: str
    path: str | None
    score: float
    """The scorer's, computed anew in FP64."""
    grains: GrainScores
    words: tuple[WordEvidence, ...]
    frames: tuple[FrameEvidence, ...]
    """Padding included, at the end."""
    best_moment: Moment
    decomposition: Decomposition

    @property
    def points(self) -> dict[str, float]:
        """The score's parts: grain name to points of the score."""
        return {
            name: value * self.decomposition.points
            for name, value in self.decomposition.grains.items()
        }

    @property
    def missing_words(self) -> tuple[WordEvidence, ...]:
        """Words that found nothing in the video: without them the score would be no lower.

        Punctuation is not listed.
        Judged by leaving each out, as similarities cannot tell: the text encoder has seen the
        words before when it comes to one, so that “circle” after “green” fits a green square.
        """
        return tuple(
            word
            for word in self.words
            if word.score_without is not None
            and word.score_without >= self.score
            and word.text.strip(string.punctuation)
        )

    @property
    def word_frame_similarity(self) -> Wide:
        """[words, frames] as in :attr:`words` and :attr:`frames`, the largest of each's tokens."""
        return max_by_word(self.decomposition.similarity, self._groups())

    def _groups(self) -> list[Word]:
        return [Word(word.text, word.kind, word.positions) for word in self.words]

    def __str__(self) -> str:
        parts = ", ".join(f"{_spoken(name)} {value:.2f}" for name, value in self.points.items())
        found = f"best moment {self.best_moment}"
        if self.missing_words:
            names = ", ".join(f"“{word.text}”" for word in self.missing_words)
            found += f"; nothing found for {names}"
        return f"score {self.score:.2f} = {parts}; {found}"

    def to_dict(self) -> dict[str, Any]:
        """As plain dictionaries, lists and numbers, for JSON."""
        return {
            "query": self.query,
            "video_id": self.video_id,
            "path": self.path,
            "score": self.score,
            "grains": asdict(self.grains),
            "points": self.points,
            "summary": str(self),
            "missing_words": [word.text for word in self.missing_words],
            "best_moment": asdict(self.best_moment),
            "words": [
                {**asdict(word), "kind": word.kind.value, "positions": list(word.positions)}
                | {"contribution": word.contribution}
                for word in self.words
            ],
            "frames": [
                asdict(frame) | {"contribution": frame.contribution} for frame in self.frames
            ],
            "decomposition": self.decomposition.to_dict(),
        }

    def plot(
        self,
        path: str | PathLike[str],
        frames: VideoFrames | None = None,
        note: str | None = None,
    ) -> None:
        """Write a PNG: frames over a heat map against the words, with times and scores.

        ``frames``: as ``Retriever.read_video(explanation.path)`` reads them; grey boxes without.
        ``note``: a line to write below. :meth:`Retriever.plot_explanation` does both. Raises
        MissingExtraError without matplotlib, InvalidArgumentError where ``path`` cannot be
        written.
        """
        from xclip_deploy.runtime.evidence.picture import draw

        draw([self], [frames], path, None, [note])


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

    ``words``: of the text's tokens. ``texts``: features of the text, and after it of the text
    without each word that is none of start, end and padding, in their order. ``video``: of one.
    """
    parts = decompose(texts[:1], video, weights, config)
    rows = (decompose(texts[n : n + 1], video, weights, config) for n in range(1, len(texts)))
    without = [next(rows).score if word.kind is TokenKind.WORD else None for word in words]
    valid = int(video.num_frames[0])
    seen = max_by_word(parts.similarity[:, :valid], words)  # [words, frames]
    by_word = _points(parts.video_word, parts, words)
    of_words = None if parts.frame_word is None else parts.frame_word.sum(axis=1)
    both = _points(of_words, parts, words)
    word_evidence = tuple(
        WordEvidence(
            word.text,
            word.kind,
            word.positions,
            similarity=float(seen[n].max()),
            best_frame=int(seen[n].argmax()),
            score_without=without[n],
            video_word=float(by_word[n]),
            frame_word=float(both[n]),
        )
        for n, word in enumerate(words)
    )
    of_frames = None if parts.frame_word is None else parts.frame_word.sum(axis=0)
    frame_evidence = tuple(
        FrameEvidence(
            entry.frame_times_s[n] if n < valid else None,
            float(parts.sentence_similarity[n]),
            0.0 if parts.frame_sentence is None else float(parts.frame_sentence[n] * parts.points),
            0.0 if of_frames is None else float(of_frames[n] * parts.points),
        )
        for n in range(len(parts.sentence_similarity))
    )
    return Explanation(
        query,
        entry.id,
        entry.path,
        parts.score,
        GrainScores(**parts.grains),
        word_evidence,
        frame_evidence,
        find_moment(parts.sentence_similarity[:valid], entry.frame_times_s, entry.duration_s),
        parts,
    )


def _points(values: Wide | None, parts: Decomposition, words: Sequence[Word]) -> Wide:
    """What words contribute, from what tokens [W] do: [n], zeros for a grain that is not there."""
    if values is None:
        return np.zeros(len(words))
    return sum_by_word(values, words) * parts.points


def _spoken(grain: str) -> str:
    return grain.replace("_", "–")
