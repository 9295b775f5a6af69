"""The factors of texts by which the scan multiplies frames and videos, in Triton.

Shapes: T texts, W words, D embedding. WP is W, rounded up to a power of two of at least 16.
"""

# Triton reads these functions, not Python: annotations beside tl.constexpr would change them.
# ruff: noqa: ANN001, ANN201, N803

from __future__ import annotations

import triton
import triton.language as tl

from xclip_deploy.export.scan_kernels.grain_source import two_parts


@triton.jit
def store_words(factor, words, scale, rows, WP: tl.constexpr):
    """Write rows [N, WP] of a factor [D, 2 WP] of words: both parts of each number."""
    high, rest = two_parts(words * scale)
    at = factor + rows[:, None] * (2 * WP) + tl.arange(0, WP)[None, :]
    tl.store(at, high)
    tl.store(at + WP, rest)


@triton.jit
def store_sentence(factor, sentence, scale, rows):
    """Write rows [N] of a factor [D, 16] of a sentence: both parts, then zeros."""
    high, rest = two_parts(sentence * scale)
    column = tl.arange(0, 16)[None, :]
    parts = tl.where(column == 0, high[:, None], tl.where(column == 1, rest[:, None], 0.0))
    tl.store(factor + rows[:, None] * 16 + column, parts)


@triton.jit
def query_kernel(
    word_features,  # FP32 [T, W, D]
    sentence_features,  # FP32 [T, D]
    query_matrices,  # FP32 [2, D, D]: by what words and sentences are multiplied first
    ups,  # FP32 [T, 4]: powers of two that bring each factor into the range of FP16
    frame_words,  # FP16 [T, D, 2 WP]
    frame_sentences,  # FP16 [T, D, 16]
    video_words,  # FP16 [T, D, 2 WP]
    video_sentences,  # FP16 [T, D, 16]
    W: tl.constexpr,
    D: tl.constexpr,
    WP: tl.constexpr,
    FRAME_WORD: tl.constexpr,
    FRAME_SENTENCE: tl.constexpr,
    VIDEO_WORD: tl.constexpr,
    VIDEO_SENTENCE: tl.constexpr,
    BD: tl.constexpr,
    BK: tl.constexpr,
):
    """Prepare BD rows of each factor of one text. Factors that no grain needs stay as they are."""
    text = tl.program_id(1)
    rows = tl.program_id(0) * BD + tl.arange(0, BD)
    word = tl.arange(0, WP)[None, :]
    words = word_features + text * (W * D)
    sentence = sentence_features + text * D
    up = ups + text * 4
    if FRAME_WORD:
        product = tl.zeros((BD, WP), tl.float32)
        for k in range(0, D, BK):
            at = k + tl.arange(0, BK)
            m = tl.load(query_matrices + at[None, :] * D + rows[:, None])
            w = tl.load(words + word * D + at[:, None], mask=word < W, other=0.0)
            product = tl.dot(m, w, product, input_precision="tf32x3")
        store_words(frame_words + text * (2 * D * WP), product, tl.load(up), rows, WP)
    if FRAME_SENTENCE:
        x = tl.load(sentence + rows)
        store_sentence(frame_sentences + text * (D * 16), x, tl.load(up + 1), rows)
    if VIDEO_WORD:
        x = tl.load(words + word * D + rows[:, None], mask=word < W, other=0.0)
        store_words(video_words + text * (2 * D * WP), x, tl.load(up + 2), rows, WP)
    if VIDEO_SENTENCE:
        x = tl.zeros((BD,), tl.float32)
        for k in range(0, D, BK):
            at = k + tl.arange(0, BK)
            m = tl.load(query_matrices + D * D + at[None, :] * D + rows[:, None])
            x += tl.sum(m * tl.load(sentence + at)[None, :], 1)
        store_sentence(video_sentences + text * (D * 16), x, tl.load(up + 3), rows)
