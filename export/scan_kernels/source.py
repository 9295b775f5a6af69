"""The scan kernels in Triton: the grains of up to 32 texts and all videos, and the best of them.

``frames_kernel`` computes the grains that read frames, ``video_kernel`` the others and the scores.
``digit_kernel`` and ``collect_kernel`` select the best by radix selection. The formulas are those
of ``training/scorer.py``.

Shapes: S slots, T texts, F frames, W words, D embedding. FP and WP are F and W, rounded up to a
power of two of at least 16, which Triton needs. Planes are [G, T, S] FP32: grain G of text T.
A query factor is two FP16 numbers, a high part and the rest, so that it is as exact as FP32.
"""

# Triton reads these functions, not Python: annotations beside tl.constexpr would change them.
# ruff: noqa: ANN001, ANN201, N803, N806, SIM108

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def allowed_bits(allowed, slots, is_slot, mask_length):
    """Return which slots may be found. ``allowed`` [S / 32] has a bit for each slot, int32."""
    word = tl.load(allowed + slots // 32, mask=slots < mask_length, other=-1)
    return is_slot & (((word >> (slots % 32)) & 1) != 0)


@triton.jit
def matrix_block(matrices, OFFSET: tl.constexpr, SIZE: tl.constexpr, N: tl.constexpr, row, column):
    """Load block [N, N] at row ``row`` N, column ``column`` N of a learned matrix [SIZE, SIZE].

    Matrices are zero beyond the model's size.
    """
    n = tl.arange(0, N)
    return tl.load(matrices + OFFSET + (row * N + n)[:, None] * SIZE + (column * N + n)[None, :])


@triton.jit
def halves(x, R: tl.constexpr, N: tl.constexpr):
    """Split [R, 2 N] into two [R, N]."""
    return tl.split(tl.permute(tl.reshape(x, (R, 2, N)), (0, 2, 1)))


@triton.jit
def attend_words(x, is_word, matrices, OFFSET: tl.constexpr, R: tl.constexpr, WP: tl.constexpr):
    """Attend over the words: [R, WP] similarities, divided by the temperature, to [R]."""
    logits = tl.where(is_word, x, float("-inf"))
    p = tl.exp(logits - tl.max(logits, 1)[:, None])
    p = p / tl.sum(p, 1)[:, None]
    x = tl.where(is_word, x, 0.0)
    if WP > 64:
        # Blocks of the matrix, since the whole would not fit into the memory of a processor.
        HALF: tl.constexpr = WP // 2
        p0, p1 = halves(p, R, HALF)
        x0, x1 = halves(x, R, HALF)
        m = matrix_block(matrices, OFFSET, WP, HALF, 0, 0)
        mixed = tl.dot(p0, m, input_precision="tf32x3")
        m = matrix_block(matrices, OFFSET, WP, HALF, 1, 0)
        mixed = tl.dot(p1, m, mixed, input_precision="tf32x3")
        total = tl.sum(mixed * x0, 1)
        m = matrix_block(matrices, OFFSET, WP, HALF, 0, 1)
        mixed = tl.dot(p0, m, input_precision="tf32x3")
        m = matrix_block(matrices, OFFSET, WP, HALF, 1, 1)
        mixed = tl.dot(p1, m, mixed, input_precision="tf32x3")
        total += tl.sum(mixed * x1, 1)
    else:
        mixed = tl.dot(p, matrix_block(matrices, OFFSET, WP, WP, 0, 0), input_precision="tf32x3")
        total = tl.sum(mixed * x, 1)
    return total


@triton.jit
def attend_few_words(x, is_word, matrices, OFFSET: tl.constexpr, N: tl.constexpr, WP: tl.constexpr):
    """Do as :func:`attend_words` for fewer rows than the 16 of a tensor core: [N, WP] to [N]."""
    COPIES: tl.constexpr = 16 // N
    wide = tl.broadcast_to(tl.expand_dims(x, 1), (N, COPIES, WP))
    rows = attend_words(tl.reshape(wide, (16, WP)), is_word, matrices, OFFSET, 16, WP)
    return tl.sum(tl.reshape(rows, (N, COPIES)), 1) / COPIES


@triton.jit
def attend_frames(x, is_frame, matrix):
    """Attend over the frames: [N, FP] to [N]. ``is_frame`` is [N, FP], ``matrix`` [FP, FP]."""
    logits = tl.where(is_frame, x, float("-inf"))
    p = tl.exp(logits - tl.max(logits, 1)[:, None])
    p = p / tl.sum(p, 1)[:, None]
    mixed = tl.sum(p[:, :, None] * matrix[None, :, :], 1)
    return tl.sum(mixed * tl.where(is_frame, x, 0.0), 1)


@triton.jit
def frames_kernel(
    frames,  # FP16 [S, F, D]
    num_frames,  # int32 [S]
    allowed,  # int32 [S / 32]
    words,  # FP16 [T, 2, D, WP]: high parts and the rest
    sentences,  # FP16 [T, D, 16]: high part, the rest, then zeros
    num_words,  # int32 [T]
    scales,  # FP32 [T, 4]: from a product to the similarity over the temperature
    matrices,  # FP32: three [FP, FP], three [WP, WP]
    planes,  # FP32 [G, T, S]
    S,
    T,
    mask_length,
    F: tl.constexpr,
    W: tl.constexpr,
    D: tl.constexpr,
    FP: tl.constexpr,
    WP: tl.constexpr,
    MASKED: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    SENTENCE: tl.constexpr,  # plane of the grain frame_sentence, or -1
    WORD: tl.constexpr,  # plane of the grain frame_word, or -1
    VIDEOS: tl.constexpr,
    BK: tl.constexpr,
):
    """Compute the grains of the frames, for VIDEOS slots a program."""
    first = tl.program_id(0) * VIDEOS
    row = tl.arange(0, VIDEOS * FP)
    slot, frame = first + row // FP, row % FP
    is_read = allowed_bits(allowed, slot, slot < S, mask_length) & (frame < F)
    start = frames + (slot.to(tl.int64) * F + frame) * D
    out = first + tl.arange(0, VIDEOS)
    is_out = out < S
    stride = S.to(tl.int64)  # planes may have more numbers than an int32 counts
    if MASKED:
        # An empty slot counts one frame, so that no softmax is over nothing.
        length = tl.maximum(tl.load(num_frames + out, mask=is_out, other=1), 1)
    else:
        length = tl.full((VIDEOS,), F, tl.int32)
    is_frame = tl.arange(0, FP)[None, :] < tl.minimum(length, F)[:, None]
    WORD_MAT: tl.constexpr = 3 * FP * FP + WP * WP
    WORD_MAT2: tl.constexpr = WORD_MAT + WP * WP
    column, column16 = tl.arange(0, WP), tl.arange(0, 16)
    for text in range(T):
        high = words + text * (2 * D * WP)
        sentence = sentences + text * (D * 16)
        by_word = tl.zeros((VIDEOS * FP, WP), tl.float32)
        by_sentence = tl.zeros((VIDEOS * FP, 16), tl.float32)
        for k in range(0, D, BK):
            at = k + tl.arange(0, BK)
            a = tl.load(start[:, None] + at[None, :], mask=is_read[:, None], other=0.0)
            if WORD >= 0:
                b = tl.load(high + at[:, None] * WP + column[None, :])
                by_word = tl.dot(a, b, by_word)
                b = tl.load(high + D * WP + at[:, None] * WP + column[None, :])
                by_word = tl.dot(a, b, by_word)
            if SENTENCE >= 0:
                b = tl.load(sentence + at[:, None] * 16 + column16[None, :])
                by_sentence = tl.dot(a, b, by_sentence)
        if SENTENCE >= 0:
            x = tl.sum(by_sentence, 1) * tl.load(scales + text * 4 + 1)
            matrix = matrix_block(matrices, 0, FP, FP, 0, 0)
            grain = attend_frames(tl.reshape(x, (VIDEOS, FP)), is_frame, matrix)
            tl.store(
                planes + (SENTENCE * T + text) * stride + out, grain * TEMPERATURE, mask=is_out
            )
        if WORD >= 0:
            similarity = by_word * tl.load(scales + text * 4)
            if MASKED:
                num = tl.minimum(tl.maximum(tl.load(num_words + text), 1), W)
            else:
                num = W
            is_word = (column < num)[None, :]
            cube = tl.reshape(similarity, (VIDEOS, FP, WP))
            # Frames first: the matrix multiplies the similarities, as in attend_across.
            seen = tl.where(is_frame[:, :, None], cube, 0.0)
            logits = tl.where(is_frame[:, :, None], cube, float("-inf"))
            p = tl.exp(logits - tl.max(logits, 1)[:, None, :])
            matrix = matrix_block(matrices, FP * FP, FP, FP, 0, 0)
            mats = tl.broadcast_to(matrix[None, :, :], (VIDEOS, FP, FP))
            mixed = tl.dot(mats, seen, input_precision="tf32x3")
            frames_first = tl.sum(p * mixed, 1) / tl.sum(p, 1)
            frames_first = attend_few_words(frames_first, is_word, matrices, WORD_MAT2, VIDEOS, WP)
            words_first = attend_words(similarity, is_word, matrices, WORD_MAT, VIDEOS * FP, WP)
            matrix = matrix_block(matrices, 2 * FP * FP, FP, FP, 0, 0)
            words_first = attend_frames(tl.reshape(words_first, (VIDEOS, FP)), is_frame, matrix)
            grain = (frames_first + words_first) * (TEMPERATURE / 2)
            tl.store(planes + (WORD * T + text) * stride + out, grain, mask=is_out)


@triton.jit
def video_kernel(
    videos,  # FP16 [S, D]
    allowed,  # int32 [S / 32]
    words,  # FP16 [T, 2, D, WP]
    sentences,  # FP16 [T, D, 16]
    num_words,  # int32 [T]
    scales,  # FP32 [T, 4]
    matrices,  # FP32: three [FP, FP], three [WP, WP]
    planes,  # FP32 [G, T, S]; those of the frames are read
    scores,  # FP32 [T, S]
    S,
    T,
    mask_length,
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
    ROWS: tl.constexpr,
    BK: tl.constexpr,
):
    """Compute the grains of whole videos and the scores, for ROWS slots a program."""
    slot = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_slot = slot < S
    stride = S.to(tl.int64)  # planes may have more numbers than an int32 counts
    is_allowed = allowed_bits(allowed, slot, is_slot, mask_length)
    start = videos + slot.to(tl.int64) * D
    column, column16 = tl.arange(0, WP), tl.arange(0, 16)
    for text in range(T):
        high = words + text * (2 * D * WP)
        sentence = sentences + text * (D * 16)
        by_word = tl.zeros((ROWS, WP), tl.float32)
        by_sentence = tl.zeros((ROWS, 16), tl.float32)
        if (SENTENCE >= 0) or (WORD >= 0):
            for k in range(0, D, BK):
                at = k + tl.arange(0, BK)
                a = tl.load(start[:, None] + at[None, :], mask=is_allowed[:, None], other=0.0)
                if WORD >= 0:
                    b = tl.load(high + at[:, None] * WP + column[None, :])
                    by_word = tl.dot(a, b, by_word)
                    b = tl.load(high + D * WP + at[:, None] * WP + column[None, :])
                    by_word = tl.dot(a, b, by_word)
                if SENTENCE >= 0:
                    b = tl.load(sentence + at[:, None] * 16 + column16[None, :])
                    by_sentence = tl.dot(a, b, by_sentence)
        # Sum in the model's order, as the scorer does.
        total = tl.zeros((ROWS,), tl.float32)
        for plane in tl.static_range(GRAINS):
            at_plane = planes + (plane * T + text) * stride + slot
            if plane == SENTENCE:
                grain = tl.sum(by_sentence, 1) * tl.load(scales + text * 4 + 3)
                tl.store(at_plane, grain, mask=is_slot)
            elif plane == WORD:
                similarity = by_word * tl.load(scales + text * 4 + 2)
                if MASKED:
                    num = tl.minimum(tl.maximum(tl.load(num_words + text), 1), W)
                else:
                    num = W
                is_word = (column < num)[None, :]
                grain = attend_words(similarity, is_word, matrices, 3 * FP * FP, ROWS, WP)
                grain *= TEMPERATURE
                tl.store(at_plane, grain, mask=is_slot)
            else:
                grain = tl.load(at_plane, mask=is_slot, other=0.0)
            total += grain
        score = tl.where(is_allowed, total * score_scale, float("-inf"))
        tl.store(scores + text * stride + slot, score, mask=is_slot)


@triton.jit
def sort_key(scores, ranks, slot, is_slot, num_ranks):
    """Return a key of 63 bits for each slot: higher scores, then lower ranks, have larger keys."""
    score = tl.load(scores + slot, mask=is_slot, other=float("-inf"))
    score = tl.where(score == 0.0, 0.0, score)  # -0.0 equals 0.0
    bits = score.to(tl.int32, bitcast=True).to(tl.int64)
    ordered = tl.where(bits >= 0, bits + 2147483648, -1 - bits)
    rank = tl.load(ranks + slot, mask=slot < num_ranks, other=0)
    rank = tl.where(slot < num_ranks, rank, slot).to(tl.int64)
    return ordered * 2147483648 + (2147483647 - rank)


@triton.jit
def chosen_prefix(counts, num_digits, count):
    """Return the leading digits of the smallest key to take, and how many keys share them.

    ``counts``: int32 [8, 256], of the keys that share the digits before: how many have each
    digit. Digits have 8 bits; the first is the highest.
    """
    digit = tl.arange(0, 256)
    prefix = tl.zeros((), tl.int64)
    wanted = count
    for place in range(num_digits):
        found = tl.load(counts + place * 256 + digit)
        above = tl.sum(found, 0) - tl.cumsum(found, 0)
        is_chosen = (above < wanted) & (above + found >= wanted)
        prefix = prefix * 256 + tl.sum(tl.where(is_chosen, digit, 0), 0).to(tl.int64)
        wanted = wanted - tl.sum(tl.where(is_chosen, above, 0), 0)
    return prefix


@triton.jit
def digit_kernel(
    scores,  # FP32 [T, S]
    ranks,  # int32 [S]
    counts,  # int32 [T, 8, 256], zero at first
    S,
    num_ranks,
    count,
    place,  # number of the digit, 0 to 7
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Count the digits at one place, of the keys whose earlier digits are those of the border."""
    text = tl.program_id(1)
    mine = counts + text * 2048
    prefix = chosen_prefix(mine, place, count)
    first = tl.program_id(0) * (STEPS * BLOCK)
    for step in range(tl.minimum(STEPS, tl.cdiv(S - first, BLOCK))):
        slot = first + step * BLOCK + tl.arange(0, BLOCK)
        is_slot = slot < S
        key = sort_key(scores + text.to(tl.int64) * S, ranks, slot, is_slot, num_ranks)
        shift = ((7 - place) * 8).to(tl.int64)
        digits = key >> shift
        is_counted = is_slot & ((digits >> 8) == prefix)
        found = tl.histogram((digits & 255).to(tl.int32), 256, mask=is_counted)
        tl.atomic_add(mine + place * 256 + tl.arange(0, 256), found, mask=found > 0)


@triton.jit
def collect_kernel(
    scores,  # FP32 [T, S]
    ranks,  # int32 [S]
    planes,  # FP32 [G, T, S]
    counts,  # int32 [T, 8, 256]
    taken,  # int32 [T], zero at first
    best_slots,  # int32 [T, count]
    best_keys,  # int64 [T, count]
    best_values,  # FP32 [T, 1 + G, count]: the score, then the grains
    S,
    T,
    num_ranks,
    count,
    GRAINS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Write the slots of the ``count`` largest keys, with score and grains, in any order."""
    text = tl.program_id(1)
    border = chosen_prefix(counts + text * 2048, 8, count)
    mine = scores + text.to(tl.int64) * S
    values = best_values + text * ((1 + GRAINS) * count)
    first = tl.program_id(0) * (STEPS * BLOCK)
    for step in range(tl.minimum(STEPS, tl.cdiv(S - first, BLOCK))):
        slot = first + step * BLOCK + tl.arange(0, BLOCK)
        is_slot = slot < S
        key = sort_key(mine, ranks, slot, is_slot, num_ranks)
        is_best = is_slot & (key >= border)
        number = is_best.to(tl.int32)
        total = tl.sum(number, 0)
        if total > 0:
            place = tl.atomic_add(taken + text, total) + tl.cumsum(number, 0) - number
            # Equal keys, which only equal ranks make, could be more than the count.
            is_best = is_best & (place < count)
            tl.store(best_slots + text * count + place, slot, mask=is_best)
            tl.store(best_keys + text * count + place, key, mask=is_best)
            tl.store(values + place, tl.load(mine + slot, mask=is_best), mask=is_best)
            for plane in tl.static_range(GRAINS):
                row = (plane * T + text).to(tl.int64) * S
                value = tl.load(planes + row + slot, mask=is_best)
                tl.store(values + (1 + plane) * count + place, value, mask=is_best)
