"""Explanations: the contribution of every word and frame, whole, and without paths."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from xclip_deploy.runtime.evidence import (
    AttentionWeights,
    BestMoment,
    Contrast,
    Decomposition,
    Explanation,
    FrameEvidence,
    FramesFirst,
    TokenKind,
    WordEvidence,
    WordsFirst,
)
from xclip_deploy.runtime.grain_scores import GrainScores
from xclip_deploy.wire.base import WireModel

Vector = list[float]
Matrix = list[list[float]]


class WordModel(WireModel):
    """A word; see :class:`WordEvidence`."""

    text: str
    kind: Literal["word", "start", "end", "padding"]
    positions: list[int]
    similarity: float
    best_frame: int
    score_without: float | None
    points: dict[str, float]
    contribution: float
    """Sum of the points."""
    is_missing: bool
    """Whether the score is no lower without the word: nothing was found for it."""


class FrameModel(WireModel):
    """A frame; see :class:`FrameEvidence`."""

    time_s: float | None
    similarity: float
    points: dict[str, float]
    contribution: float


class BestMomentModel(WireModel):
    """The best moment; see :class:`BestMoment`."""

    start_s: float
    end_s: float
    best_frame_time_s: float
    resolution_s: float


class WordsFirstModel(WireModel):
    """Weights of words within frames, then of frames; see :class:`WordsFirst`."""

    words: Matrix
    frames: Vector


class FramesFirstModel(WireModel):
    """Weights of frames within words, then of words; see :class:`FramesFirst`."""

    frames: Matrix
    words: Vector


class AttentionModel(WireModel):
    """Weights of every aggregation; see :class:`AttentionWeights`."""

    video_word: Vector | None
    frame_sentence: Vector | None
    words_first: WordsFirstModel | None
    frames_first: FramesFirstModel | None


class DecompositionModel(WireModel):
    """The score by tokens and frames; see :class:`Decomposition`."""

    score_scale: float
    similarity: Matrix
    sentence_similarity: Vector
    contributions: dict[str, float | Vector | Matrix]
    attention: AttentionModel

    def decomposition(self) -> Decomposition:
        """Restore the record."""
        attention = self.attention
        first, last = attention.words_first, attention.frames_first
        return Decomposition(
            self.score_scale,
            np.array(self.similarity),
            np.array(self.sentence_similarity),
            {name: np.array(part) for name, part in self.contributions.items()},
            AttentionWeights(
                None if attention.video_word is None else np.array(attention.video_word),
                None if attention.frame_sentence is None else np.array(attention.frame_sentence),
                None
                if first is None
                else WordsFirst(np.array(first.words), np.array(first.frames)),
                None if last is None else FramesFirst(np.array(last.frames), np.array(last.words)),
            ),
        )


class ExplanationModel(WireModel):
    """An explanation of one video's score; see :class:`Explanation`."""

    query: str
    id: str
    handle: str
    name: str
    """File name, or the id of a video without a file."""
    has_media: bool
    segment: int
    num_segments: int
    start_s: float
    end_s: float | None
    score: float
    grains: dict[str, float]
    """The model's grains, in their order."""
    points: dict[str, float]
    """Grain to its points of the score, which add up to it."""
    summary: str
    missing_words: list[str]
    best_moment: BestMomentModel
    words: list[WordModel]
    frames: list[FrameModel]
    """Every frame, with padding at the end."""
    similarity: Matrix
    """Largest similarity of each word's tokens to each frame, [words, frames]: the heat map."""
    decomposition: DecompositionModel

    @classmethod
    def of(
        cls, explanation: Explanation, video_id: str, handle: str, name: str
    ) -> ExplanationModel:
        """Encode an explanation of a video with these names."""
        missing = {word.positions for word in explanation.missing_words}
        parts = explanation.decomposition
        return cls(
            query=explanation.query,
            id=video_id,
            handle=handle,
            name=name,
            has_media=explanation.path is not None,
            segment=explanation.segment,
            num_segments=explanation.num_segments,
            start_s=explanation.start_s,
            end_s=explanation.end_s,
            score=explanation.score,
            grains=dict(explanation.grains),
            points=explanation.points,
            summary=str(explanation),
            missing_words=[word.text for word in explanation.missing_words],
            best_moment=BestMomentModel(**vars(explanation.best_moment)),
            words=[
                WordModel(
                    text=word.text,
                    kind=word.kind.value,
                    positions=list(word.positions),
                    similarity=word.similarity,
                    best_frame=word.best_frame,
                    score_without=word.score_without,
                    points=word.points,
                    contribution=word.contribution,
                    is_missing=word.positions in missing,
                )
                for word in explanation.words
            ],
            frames=[
                FrameModel(
                    time_s=frame.time_s,
                    similarity=frame.similarity,
                    points=frame.points,
                    contribution=frame.contribution,
                )
                for frame in explanation.frames
            ],
            similarity=explanation.word_frame_similarity.tolist(),
            decomposition=_decomposition_of(parts),
        )

    def explanation(self) -> Explanation:
        """Restore the explanation. It names the video by its public id and knows no file."""
        return Explanation(
            self.query,
            self.id,
            None,
            self.score,
            GrainScores(self.grains),
            tuple(
                WordEvidence(
                    word.text,
                    TokenKind(word.kind),
                    tuple(word.positions),
                    word.similarity,
                    word.best_frame,
                    word.score_without,
                    word.points,
                )
                for word in self.words
            ),
            tuple(
                FrameEvidence(frame.time_s, frame.similarity, frame.points) for frame in self.frames
            ),
            BestMoment(**self.best_moment.model_dump()),
            self.decomposition.decomposition(),
            self.segment,
            self.num_segments,
            self.start_s,
            self.end_s,
        )


class WordContrastModel(WireModel):
    """A word's part of a difference; see :class:`WordContrast`."""

    text: str
    kind: Literal["word", "start", "end", "padding"]
    points: dict[str, float]
    contribution: float


class ContrastModel(WireModel):
    """An explanation of the order of two videos; see :class:`Contrast`."""

    query: str
    summary: str
    difference: float
    """Score of the first less that of the second."""
    grains: dict[str, float]
    """Grain to its part of the difference, in points."""
    words: list[WordContrastModel]
    first: ExplanationModel
    second: ExplanationModel

    @classmethod
    def of(
        cls, contrast: Contrast, first: ExplanationModel, second: ExplanationModel
    ) -> ContrastModel:
        """Encode a contrast of two encoded explanations."""
        return cls(
            query=contrast.query,
            summary=str(contrast),
            difference=contrast.difference,
            grains=contrast.grains,
            words=[
                WordContrastModel(
                    text=word.text,
                    kind=word.kind.value,
                    points=word.points,
                    contribution=word.contribution,
                )
                for word in contrast.words
            ],
            first=first,
            second=second,
        )

    def contrast(self) -> Contrast:
        """Restore the contrast."""
        return Contrast(self.first.explanation(), self.second.explanation())


class EvidenceModel(WireModel):
    """The answer to a question: an explanation, and a contrast where two videos were asked for."""

    explanation: ExplanationModel | None
    """The one video's; None for two."""
    contrast: ContrastModel | None = None


def _decomposition_of(parts: Decomposition) -> DecompositionModel:
    attention = parts.attention

    def plain(value: Any) -> Any:  # noqa: ANN401 - arrays of any dimension
        return None if value is None else value.tolist()

    first, last = attention.words_first, attention.frames_first
    return DecompositionModel(
        score_scale=parts.score_scale,
        similarity=plain(parts.similarity),
        sentence_similarity=plain(parts.sentence_similarity),
        contributions={
            name: np.asarray(part).tolist() for name, part in parts.contributions.items()
        },
        attention=AttentionModel(
            video_word=plain(attention.video_word),
            frame_sentence=plain(attention.frame_sentence),
            words_first=None
            if first is None
            else WordsFirstModel(words=plain(first.words), frames=plain(first.frames)),
            frames_first=None
            if last is None
            else FramesFirstModel(frames=plain(last.frames), words=plain(last.words)),
        ),
    )
