"""Evidence for a score: the contribution of every word and frame, and the best moment.

>>> print(retriever.explain("a dog on a leash", hit))            # doctest: +SKIP
>>> print(retriever.explain("a dog on a leash", hits[0], hits[1]))  # doctest: +SKIP
"""

from __future__ import annotations

from xclip_deploy.runtime.evidence.contrast import Contrast, FrameContrast, WordContrast
from xclip_deploy.runtime.evidence.decomposition import (
    AttentionWeights,
    Decomposition,
    FramesFirst,
    WordsFirst,
    decompose,
)
from xclip_deploy.runtime.evidence.explainer import Hit, explain_hits, plot_explanation
from xclip_deploy.runtime.evidence.explanation import (
    Explanation,
    FrameEvidence,
    WordEvidence,
    explain_video,
)
from xclip_deploy.runtime.evidence.moments import BestMoment, find_moment
from xclip_deploy.runtime.evidence.picture import draw_explanation
from xclip_deploy.runtime.evidence.words import TokenKind, Word, without, words_of

__all__ = [
    "AttentionWeights",
    "BestMoment",
    "Contrast",
    "Decomposition",
    "Explanation",
    "FrameContrast",
    "FrameEvidence",
    "FramesFirst",
    "Hit",
    "TokenKind",
    "Word",
    "WordContrast",
    "WordEvidence",
    "WordsFirst",
    "decompose",
    "draw_explanation",
    "explain_hits",
    "explain_video",
    "find_moment",
    "plot_explanation",
    "without",
    "words_of",
]
