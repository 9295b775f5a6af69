"""The grains of up to 32 texts and all videos, in Triton.

``frames_kernel`` computes the grains that read frames, ``video_kernel`` the others and the scores.
The formulas are those of ``training/scorer.py``.

Shapes: S slots, T texts, F frames, W words, D embedding. FP and WP are F and W, rounded up to a
power of two of at least 16, which Triton needs. Planes are [G, T, S] FP32: grain G of text T.

Tensor cores multiply FP16. A number in two parts, a high one and the rest, is as exact as FP32.
Factors of texts have both parts side by side, as columns. The learned matrices have one part after
the other, and a power of two keeps them in the range of FP16.
"""

# Triton reads these functions, not Python: annotations beside tl.constexpr would change them.
# ruff: noqa: ANN001, ANN201, N803, N806, SIM108

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
UNIT = tl.constexpr(1 / 16)  # keeps similarities up to 10,000 in the range of FP16


@triton.jit
def allowed_bits(allowed, slots, is_slot, mask_length):
    """Return which slots may be found. ``allowed`` [S / 32] has a bit for each slot, int32."""
    word = tl.load(allowed + slots // 32, mask=slots < mask_length, other=-1)
    return is_slot & (((word >> (slots % 32)) & 1) != 0)


@triton.jit
def two_parts(x):
    """Split FP32 numbers into two of FP16: the high part and the rest."""
    high = x.to(tl.float16)
    return high, (x - high.to(tl.float32)).to(tl.float16)


@triton.jit
def matrix_block(matrices, OFFSET: tl.constexpr, SIZE: tl.constexpr, N: tl.constexpr, row, column):
    """Load both parts of block [N, N] at row ``row`` N, column ``column`` N of a learned matrix.

    A matrix is [2, SIZE, SIZE] FP16, and zero beyond the model's size.
    """
    n = tl.arange(0, N)
    at = matrices + OFFSET + (row * N + n)[:, None] * SIZE + (column * N + n)[None, :]
    return tl.load(at), tl.load(at + SIZE * SIZE)


@triton.jit
def halves(x, R: tl.constexpr, N: tl.constexpr):
    """Split [R, 2 N] into two [R, N]."""
    return tl.split(tl.permute(tl.reshape(x, (R, 2, N)), (0, 2, 1)))


@triton.jit
def add_words(total, a, factor, at, WP: tl.constexpr):
    """Add the product of ``a`` [R, BK] and rows ``at`` of a factor of words [D, 2 WP].

    Up to 32 words, both parts have sums of their own, since one wide product reads ``a`` once.
    More words share one sum: two would need more registers than a thread has.
    """
    rows = factor + at[:, None] * (2 * WP)
    if WP > 32:
        column = tl.arange(0, WP)[None, :]
        total = tl.dot(a, tl.load(rows + column), total)
        total = tl.dot(a, tl.load(rows + WP + column), total)
    else:
        total = tl.dot(a, tl.load(rows + tl.arange(0, 2 * WP)[None, :]), total)
    return total


@triton.jit
def whole_words(total, R: tl.constexpr, WP: tl.constexpr):
    """Add the sums of both parts, if there are two: the similarities [R, WP]."""
    if WP > 32:
        x = total
    else:
        high, rest = halves(total, R, WP)
        x = high + rest
    return x


@triton.jit
def by_parts(high, rest, right_high, right_rest, total):
    """Add a product of numbers in two parts. That of both rests is too small to count."""
    total = tl.dot(high, right_high, total)
    total = tl.dot(rest, right_high, total)
    return tl.dot(high, right_rest, total)


@triton.jit
def attend_words(
    x,
    is_word,
    matrices,
    scale,
    OFFSET: tl.constexpr,
    R: tl.constexpr,
    WP: tl.constexpr,
):
    """Attend over the words: [R, WP] similarities, divided by the temperature, to [R].

    ``scale``: factor from the matrix in FP16 to the learned one.
    """
    top = tl.max(tl.where(is_word, x, float("-inf")), 1)
    p = tl.where(is_word, tl.exp2(x * LOG2_E - (top * LOG2_E)[:, None]), 0.0)
    x = tl.where(is_word, x, 0.0)
    high, rest = two_parts(p)
    # Blocks of a large matrix, since the whole would not fit into the memory of a processor.
    N: tl.constexpr = WP // 2 if WP > 64 else WP
    if WP > 64:
        high0, high1 = halves(high, R, N)
        rest0, rest1 = halves(rest, R, N)
        x0, x1 = halves(x, R, N)
        m, n = matrix_block(matrices, OFFSET, WP, N, 0, 0)
        mixed = by_parts(high0, rest0, m, n, tl.zeros((R, N), tl.float32))
        m, n = matrix_block(matrices, OFFSET, WP, N, 1, 0)
        total = tl.sum(by_parts(high1, rest1, m, n, mixed) * x0, 1)
        m, n = matrix_block(matrices, OFFSET, WP, N, 0, 1)
        mixed = by_parts(high0, rest0, m, n, tl.zeros((R, N), tl.float32))
        m, n = matrix_block(matrices, OFFSET, WP, N, 1, 1)
        total += tl.sum(by_parts(high1, rest1, m, n, mixed) * x1, 1)
    else:
        m, n = matrix_block(matrices, OFFSET, WP, N, 0, 0)
        mixed = by_parts(high, rest, m, n, tl.zeros((R, N), tl.float32))
        total = tl.sum(mixed * x, 1)
    return total * (scale / tl.sum(p, 1))


@triton.jit
def attend_frames(
    x,
    is_frame,
    matrices,
    scale,
    OFFSET: tl.constexpr,
    N: tl.constexpr,
    FP: tl.constexpr,
):
    """Attend over the frames of N videos: [N, FP, C], divided by the temperature, to [N, C].

    ``is_frame`` is [N, FP, 1]. The matrix multiplies similarities here, and attention elsewhere:
    the sum is the same.
    """
    top = tl.max(tl.where(is_frame, x, float("-inf")), 1)
    p = tl.where(is_frame, tl.exp2(x * LOG2_E - (top * LOG2_E)[:, None, :]), 0.0)
    high, rest = two_parts(tl.where(is_frame, x, 0.0) * UNIT)
    m, n = matrix_block(matrices, OFFSET, FP, FP, 0, 0)
    m = tl.broadcast_to(m[None, :, :], (N, FP, FP))
    n = tl.broadcast_to(n[None, :, :], (N, FP, FP))
    mixed = tl.dot(m, high)
    mixed = tl.dot(m, rest, mixed)
    mixed = tl.dot(n, high, mixed)
    return tl.sum(p * mixed, 1) * (scale / UNIT / tl.sum(p, 1))


@triton.jit
def attend_frames_once(
    x,
    is_frame,
    matrices,
    scale,
    OFFSET: tl.constexpr,
    N: tl.constexpr,
    FP: tl.constexpr,
):
    """Do as :func:`attend_frames` for one column: [N FP] to [N]. Tensor cores need 16 columns."""
    copies = tl.reshape(tl.broadcast_to(x[:, None], (N * FP, 16)), (N, FP, 16))
    found = attend_frames(copies, is_frame, matrices, scale, OFFSET, N, FP)
    return tl.max(found, 1)


@triton.jit
def frames_kernel(
    frames,  # FP16 [S, F, D]
    num_frames,  # int32 [S]
    allowed,  # int32 [S / 32]
    frame_words,  # FP16 [T, D, 2 WP]: high parts, then the rest
    frame_sentences,  # FP16 [T, D, 16]: high part, the rest, then zeros
    num_words,  # int32 [T]
    scales,  # FP32 [T, 4]: from a product to the similarity over the temperature
    matrices,  # FP16: three [2, FP, FP], three [2, WP, WP]
    matrix_scales,  # FP32 [6]: from a matrix in FP16 to the learned one
    planes,  # FP32 [G, T, S]
    S,
    T,
    mask_length,
    first_program,  # programs of earlier launches
    F: tl.constexpr,
    W: tl.constexpr,
    D: tl.constexpr,
    FP: tl.constexpr,
    WP: tl.constexpr,
    MASKED: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    SENTENCE: tl.constexpr,  # plane of the grain frame_sentence, or -1
    WORD: tl.constexpr,  # plane of the grain frame_word, or -1
    SLOTS: tl.constexpr,
    BK: tl.constexpr,
):
    """Compute the grains of the frames, for SLOTS slots a program."""
    R: tl.constexpr = SLOTS * FP
    WORD_MAT: tl.constexpr = 6 * FP * FP + 2 * WP * WP
    WORD_MAT2: tl.constexpr = WORD_MAT + 2 * WP * WP
    first = (first_program + tl.program_id(0)) * SLOTS
    row = tl.arange(0, R)
    slot, frame = first + row // FP, row % FP
    is_read = allowed_bits(allowed, slot, slot < S, mask_length) & (frame < F)
    start = frames + (slot.to(tl.int64) * F + frame) * D
    out = first + tl.arange(0, SLOTS)
    is_out = out < S
    stride = S.to(tl.int64)  # planes may have more numbers than an int32 counts
    if MASKED:
        # An empty slot counts one frame, so that no softmax is over nothing.
        length = tl.maximum(tl.load(num_frames + out, mask=is_out, other=1), 1)
    else:
        length = tl.full((SLOTS,), F, tl.int32)
    is_frame = tl.arange(0, FP)[None, :, None] < tl.minimum(length, F)[:, None, None]
    column = tl.arange(0, 16)
    for text in range(T):
        factor = frame_words + text * (2 * D * WP)
        sentence = frame_sentences + text * (D * 16)
        by_word = tl.zeros((R, WP if WP > 32 else 2 * WP), tl.float32)
        by_sentence = tl.zeros((R, 16), tl.float32)
        for k in range(0, D, BK):
            at = k + tl.arange(0, BK)
            a = tl.load(start[:, None] + at[None, :], mask=is_read[:, None], other=0.0)
            if WORD >= 0:
                by_word = add_words(by_word, a, factor, at, WP)
            if SENTENCE >= 0:
                b = tl.load(sentence + at[:, None] * 16 + column[None, :])
                by_sentence = tl.dot(a, b, by_sentence)
        if SENTENCE >= 0:
            x = tl.sum(by_sentence, 1) * tl.load(scales + text * 4 + 1)
            scale = tl.load(matrix_scales)
            grain = attend_frames_once(x, is_frame, matrices, scale, 0, SLOTS, FP)
            tl.store(
                planes + (SENTENCE * T + text) * stride + out, grain * TEMPERATURE, mask=is_out
            )
        if WORD >= 0:
            x = whole_words(by_word, R, WP) * tl.load(scales + text * 4)
            if MASKED:
                num = tl.minimum(tl.maximum(tl.load(num_words + text), 1), W)
            else:
                num = W
            is_word = (tl.arange(0, WP) < num)[None, :]
            # Frames first. Every row of a video then has the same words, for tensor cores.
            scale = tl.load(matrix_scales + 1)
            cube = tl.reshape(x, (SLOTS, FP, WP))
            seen = attend_frames(cube, is_frame, matrices, scale, 2 * FP * FP, SLOTS, FP)
            seen = tl.reshape(tl.broadcast_to(seen[:, None, :], (SLOTS, FP, WP)), (R, WP))
            scale = tl.load(matrix_scales + 5)
            frames_first = attend_words(seen, is_word, matrices, scale, WORD_MAT2, R, WP)
            frames_first = tl.max(tl.reshape(frames_first, (SLOTS, FP)), 1)
            scale = tl.load(matrix_scales + 4)
            words_first = attend_words(x, is_word, matrices, scale, WORD_MAT, R, WP)
            scale = tl.load(matrix_scales + 2)
            words_first = attend_frames_once(
                words_first, is_frame, matrices, scale, 4 * FP * FP, SLOTS, FP
            )
            grain = (frames_first + words_first) * (TEMPERATURE / 2)
            tl.store(planes + (WORD * T + text) * stride + out, grain, mask=is_out)


@triton.jit
def video_kernel(
    videos,  # FP16 [S, D]
    allowed,  # int32 [S / 32]
    video_words,  # FP16 [T, D, 2 WP]
    video_sentences,  # FP16 [T, D, 16]
    num_words,  # int32 [T]
    scales,  # FP32 [T, 4]
    matrices,  # FP16: three [2, FP, FP], three [2, WP, WP]
    matrix_scales,  # FP32 [6]
    planes,  # FP32 [G, T, S]; those of the frames are read
    scores,  # FP32 [T, S]
    S,
    T,
    mask_length,
    first_program,  # programs of earlier launches
    score_scale,  # FP32: exp(logit_scale), divided by the number of grains
    W: tl.constexpr,
    D: tl.constexpr,
    FP: tl.constexpr,
    WP: tl.constexpr,
    MASKED: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    SENTENCE: tl.constexpr,  # plane of the grain video_sentence, or -1
    WORD: tl.constexpr,  # plane of the grain video_word, or -1
    GRAINS: tl.constexpr,
    SLOTS: tl.constexpr,
    BK: tl.constexpr,
):
    """Compute the grains of whole videos and the scores, for SLOTS slots a program."""
    slot = (first_program + tl.program_id(0)) * SLOTS + tl.arange(0, SLOTS)
    is_slot = slot < S
    stride = S.to(tl.int64)  # planes may have more numbers than an int32 counts
    is_allowed = allowed_bits(allowed, slot, is_slot, mask_length)
    start = videos + slot.to(tl.int64) * D
    column = tl.arange(0, 16)
    for text in range(T):
        factor = video_words + text * (2 * D * WP)
        sentence = video_sentences + text * (D * 16)
        by_word = tl.zeros((SLOTS, WP if WP > 32 else 2 * WP), tl.float32)
        by_sentence = tl.zeros((SLOTS, 16), tl.float32)
        if (SENTENCE >= 0) or (WORD >= 0):
            for k in range(0, D, BK):
                at = k + tl.arange(0, BK)
                a = tl.load(start[:, None] + at[None, :], mask=is_allowed[:, None], other=0.0)
                if WORD >= 0:
                    by_word = add_words(by_word, a, factor, at, WP)
                if SENTENCE >= 0:
                    b = tl.load(sentence + at[:, None] * 16 + column[None, :])
                    by_sentence = tl.dot(a, b, by_sentence)
        # Sum in the model's order, as the scorer does.
        total = tl.zeros((SLOTS,), tl.float32)
        for plane in tl.static_range(GRAINS):
            at_plane = planes + (plane * T + text) * stride + slot
            if plane == SENTENCE:
                grain = tl.sum(by_sentence, 1) * tl.load(scales + text * 4 + 3)
                tl.store(at_plane, grain, mask=is_slot)
            elif plane == WORD:
                x = whole_words(by_word, SLOTS, WP) * tl.load(scales + text * 4 + 2)
                if MASKED:
                    num = tl.minimum(tl.maximum(tl.load(num_words + text), 1), W)
                else:
                    num = W
                is_word = (tl.arange(0, WP) < num)[None, :]
                scale = tl.load(matrix_scales + 3)
                grain = attend_words(x, is_word, matrices, scale, 6 * FP * FP, SLOTS, WP)
                grain *= TEMPERATURE
                tl.store(at_plane, grain, mask=is_slot)
            else:
                grain = tl.load(at_plane, mask=is_slot, other=0.0)
            total += grain
        score = tl.where(is_allowed, total * score_scale, float("-inf"))
        tl.store(scores + text * stride + slot, score, mask=is_slot)
