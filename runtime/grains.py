"""The table of grains: the comparisons of a text and a video whose mean is a score.

:data:`GRAINS` holds everything about a grain except its formula. ``training/scorer.py`` has the
formulas in PyTorch, and ``runtime/evidence/decomposition.py`` in NumPy.
``runtime/search/video_grains.py`` has those of the grains that need no frames, and
``runtime/sessions/scorer_graphs.py`` those of a CPU's faster graphs. CONTRIBUTING.md
says how to add a grain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, Protocol

TEMPERATURE = 0.01
"""Temperature of the attention over similarities (AOSM)."""

TextFeature = Literal["sentence_features", "word_features"]
VideoFeature = Literal["video_features", "frame_features"]
Axis = Literal["embed", "words", "frames"]

LENGTHS: Mapping[str, str] = {"word_features": "num_words", "frame_features": "num_frames"}
"""Feature with a row for each position -> input that counts its rows without padding."""


class Grain(str, Enum):
    """Comparison of a text and a video (Ma et al., "X-CLIP", ACM MM 2022, section 3.2)."""

    VIDEO_SENTENCE = "video_sentence"
    VIDEO_WORD = "video_word"
    FRAME_SENTENCE = "frame_sentence"
    FRAME_WORD = "frame_word"

    @property
    def spoken(self) -> str:
        """Name for people, such as ``video–sentence``."""
        return self.value.replace("_", "–")


@dataclass(frozen=True)
class GrainEntry:
    """Everything about a grain except its formula."""

    text: TextFeature
    """Feature of the text that it compares."""
    video: VideoFeature
    """Feature of the video that it compares."""
    colour: str
    """Colour of its bars in pictures."""
    matrices: Mapping[str, Axis] = field(default_factory=dict)
    """Name of each learned matrix in the authors' checkpoints -> the axis of its rows and of its
    columns. Every matrix is square."""
    projections: frozenset[str] = frozenset()
    """Matrices that a model without ``ModelConfig.sentence_projection`` lacks."""
    softmaxes: int = 0
    """Number of softmaxes in its graph, one for each aggregation. The audit of a graph counts
    them. A softmax that the scorer writes out counts once, by its exponential."""

    @property
    def reads_words(self) -> bool:
        """Whether each word has a part of its own in the grain."""
        return self.text == "word_features"

    @property
    def reads_frames(self) -> bool:
        """Whether each frame has a part of its own in the grain."""
        return self.video == "frame_features"


GRAINS: Mapping[Grain, GrainEntry] = {
    # (sentence G) · video
    Grain.VIDEO_SENTENCE: GrainEntry(
        text="sentence_features",
        video="video_features",
        colour="#7f7f7f",
        matrices={"global_mat_weight": "embed"},
        projections=frozenset({"global_mat_weight"}),
    ),
    # A(words · video; M)
    Grain.VIDEO_WORD: GrainEntry(
        text="word_features",
        video="video_features",
        colour="#1f77b4",
        matrices={"word_logit_weight": "words"},
        softmaxes=1,
    ),
    # A(sentence · frames; M)
    Grain.FRAME_SENTENCE: GrainEntry(
        text="sentence_features",
        video="frame_features",
        colour="#2ca02c",
        matrices={"frame_logit_weight": "frames"},
        softmaxes=1,
    ),
    # (A(A(S; word_mat_weight); frame_mat_weight2)       words first
    #  + A(A(S; frame_mat_weight); word_mat_weight2)) / 2     frames first
    # with S = (words L) · frames and L = local_mat_weight
    Grain.FRAME_WORD: GrainEntry(
        text="word_features",
        video="frame_features",
        colour="#ff7f0e",
        matrices={
            "local_mat_weight": "embed",
            "word_mat_weight": "words",
            "frame_mat_weight": "frames",
            "word_mat_weight2": "words",
            "frame_mat_weight2": "frames",
        },
        softmaxes=4,
    ),
}
"""One entry for each grain, in the order of :class:`Grain`."""

PUBLISHED_GRAINS = (
    Grain.VIDEO_SENTENCE,
    Grain.VIDEO_WORD,
    Grain.FRAME_SENTENCE,
    Grain.FRAME_WORD,
)
"""Grains of the published X-CLIP, and the default of a configuration."""

CLIP_GRAINS = (Grain.VIDEO_SENTENCE,)
"""Grains of CLIP and CLIP4Clip, which have no learned matrix."""


class ScorerDimensions(Protocol):
    """Dimensions in a model's configuration that fix the scorer's parameters."""

    @property
    def embed_dim(self) -> int:
        """Dimension of an embedding."""
        ...

    @property
    def max_words(self) -> int:
        """Number of token positions of a text."""
        ...

    @property
    def max_frames(self) -> int:
        """Number of frames of a video."""
        ...

    @property
    def grains(self) -> tuple[Grain, ...]:
        """Grains whose mean is the score."""
        ...

    @property
    def sentence_projection(self) -> bool:
        """Whether the grains have their :attr:`GrainEntry.projections`."""
        ...


def matrix_shapes(config: ScorerDimensions) -> dict[str, tuple[int, int]]:
    """Return the shape of every learned matrix of a model's scorer, by name.

    The order is that of the table, whatever the order of ``config.grains``. Optimizer states
    and files depend on it.
    """
    sizes: dict[Axis, int] = {
        "embed": config.embed_dim,
        "words": config.max_words,
        "frames": config.max_frames,
    }
    return {
        name: (sizes[axis], sizes[axis])
        for grain, entry in GRAINS.items()
        if grain in config.grains
        for name, axis in entry.matrices.items()
        if config.sentence_projection or name not in entry.projections
    }


def matrices_over(axis: Axis) -> tuple[str, ...]:
    """Return the names of all matrices whose rows and columns are ``axis``."""
    return tuple(
        name for entry in GRAINS.values() for name, each in entry.matrices.items() if each == axis
    )
