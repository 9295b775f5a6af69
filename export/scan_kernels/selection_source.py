"""The best of all scores by radix selection, in Triton.

``digit_kernel`` counts the digits of sort keys, ``collect_kernel`` copies the best. S is the number
of slots, T that of texts, G that of grains.
"""

# Triton reads these functions, not Python: annotations beside tl.constexpr would change them.
# ruff: noqa: ANN001, ANN201, N803

from __future__ import annotations

import triton
import triton.language as tl


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
    best_slots,  # int32 [T, room]
    best_keys,  # int64 [T, room]
    best_values,  # FP32 [T, 1 + G, room]: the score, then the grains
    S,
    T,
    num_ranks,
    count,
    places,  # digits that were counted
    room,
    GRAINS: tl.constexpr,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Write the slots of the ``count`` largest keys, with score and grains, in any order.

    Keys that share the counted digits with the smallest of them are written too, and ``taken``
    counts all. What finds no room is left out.
    """
    text = tl.program_id(1)
    border = chosen_prefix(counts + text * 2048, places, count) << ((8 - places) * 8).to(tl.int64)
    mine = scores + text.to(tl.int64) * S
    values = best_values + text * ((1 + GRAINS) * room)
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
            is_best = is_best & (place < room)
            tl.store(best_slots + text * room + place, slot, mask=is_best)
            tl.store(best_keys + text * room + place, key, mask=is_best)
            tl.store(values + place, tl.load(mine + slot, mask=is_best), mask=is_best)
            for plane in tl.static_range(GRAINS):
                row = (plane * T + text).to(tl.int64) * S
                value = tl.load(planes + row + slot, mask=is_best)
                tl.store(values + (1 + plane) * room + place, value, mask=is_best)
