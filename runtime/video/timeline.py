"""The player's clock of a long video: when its frames are shown, where time jumps, what is lost.

Files of some formats are joined from pieces, each with timestamps of its own, and their
timestamps wrap. Players then go on counting from the piece before, and so does this module, by
the rules of the ``ffmpeg`` program. FFmpeg's library does not do it.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from xclip_deploy.runtime.presentation import time_text
from xclip_deploy.runtime.video.packet_index import FALLBACK_FRAME_RATE, PacketIndex

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

_NONE = -(2**63)
# ffmpeg's -dts_delta_threshold, for formats whose timestamps may jump.
_JUMP_S = 10.0
# ffmpeg's -dts_error_threshold, for the other formats. Their gaps are real up to there.
_ERROR_S = 30 * 3600.0
# ffmpeg's bounds for steps back, by the same two kinds of formats.
_BACK_S, _ERROR_BACK_S = 0.1, 1.0
# A pause of more than this many frames, and of more than this time, can be a loss.
_LOSS_FRAMES, _LOSS_S = 5, 0.5
# Share of the bytes of the missing frames that a loss leaves at least, as damage, in the file, and
# how much the other bytes vary.
_LOSS_SHARE, _USUAL = 0.5, 1.1
_UNINDEXED = 0.1  # share of the packets that an index may lack
_SPREAD_S = 1e-4  # between frames that are given the same time
REORDERED = 17
"""Most packets from that of a frame to those of frames that are shown before it: 16 B-frames."""
_NAMED = 3


class PacketScan:
    """Facts about the packets of a video stream in the order of the file, 41 bytes each."""

    def __init__(self) -> None:
        self.stamps = array("q")
        self.decoding = array("q")
        self.durations = array("q")
        self.positions = array("q")
        self.sizes = array("q")
        self.is_shown = bytearray()
        self.is_corrupt = bytearray()

    def note(self, packet: Packet[Any], is_shown: bool) -> None:
        """Note a packet, for :func:`index_packets`."""
        self.stamps.append(_NONE if packet.pts is None else packet.pts)
        dts = packet.pts if packet.dts is None else packet.dts
        self.decoding.append(_NONE if dts is None else dts)
        self.durations.append(packet.duration or 0)
        self.positions.append(-1 if packet.pos is None else packet.pos)
        self.sizes.append(packet.size)
        self.is_shown.append(is_shown)
        self.is_corrupt.append(packet.is_corrupt)


@dataclass(frozen=True, eq=False)
class Timeline:
    """Display times of a video's frames on the player's clock."""

    times_s: NDArray[np.float64]
    """Times of all frames that are shown, in display order, increasing, seconds ``[n]``."""
    stamps: NDArray[np.int64] | None
    """Timestamps of these frames ``[n]``, after the jumps; None if no frame can be recognised by
    its timestamp, and frames are numbered."""
    jumps: dict[int, int]
    """Numbers of the packets from which on so many ticks are added to timestamps."""
    time_base: float
    """Seconds per tick."""
    duration_s: float
    """Seconds from time 0 to the end of the last frame."""
    losses: tuple[tuple[float, float], ...]
    """Start and end of pauses in which packets are missing, as the bytes between them tell."""
    broken: frozenset[int]
    """The packets behind these pauses, which may need missing ones: their timestamps, or their
    numbers among those that are shown if ``stamps`` is None."""
    warnings: tuple[str, ...]
    """Faults of the timestamps, one line each."""

    def time_s(self, stamp: int) -> float:
        """Return the time of a timestamp after the jumps."""
        assert self.stamps is not None
        return float(self.times_s[0] + (stamp - int(self.stamps[0])) * self.time_base)


def timeline_of(
    container: InputContainer, stream: VideoStream, index: PacketIndex, scan: PacketScan
) -> Timeline:
    """Make the clock of a video whose container is still open."""
    from av.format import Flags

    rate = index.frame_rate or FALLBACK_FRAME_RATE
    time_base = index.time_base
    may_jump = bool(container.format.flags & cast("int", Flags.ts_discont.value))
    decoding, stamps = _array(scan.decoding), _array(scan.stamps)
    has_counted_wrong = False
    if container.format.name == "avi":
        counted, decoding = decoding, _by_index(decoding, _array(scan.positions), stream)
        has_counted_wrong = not np.array_equal(counted, decoding)
    shown = np.frombuffer(scan.is_shown, np.uint8).astype(bool)
    strays = _strays(decoding, time_base)
    stamps = np.where(strays, _NONE, stamps)
    is_dated = bool(len(decoding)) and np.mean((decoding == _NONE) | strays) < 0.5
    decoding = _filled(np.where(strays, _NONE, decoding))
    interval = _interval(decoding) or (1 / (rate * time_base) if time_base else 1.0)
    is_reordered = index.is_in_decoding_order or has_counted_wrong or bool((stamps == _NONE).any())
    clock = decoding if is_reordered else stamps
    losses = _losses(scan, clock, interval, time_base, may_jump)
    jumps = _jumps(scan, decoding, interval, time_base, may_jump, losses)
    offsets = np.zeros(len(decoding), np.int64)
    for number, offset in jumps.items():
        offsets[number:] = offset
    decoding = np.where(decoding == _NONE, _NONE, decoding + offsets)
    stamps = np.where(stamps == _NONE, _NONE, stamps + offsets)
    said = _describe_jumps(jumps, decoding, time_base)

    known = np.unique(stamps[shown])
    is_known = len(known) == shown.sum() > 0 and known[0] != _NONE and time_base > 0
    is_stamped = is_known and not (index.is_in_decoding_order or has_counted_wrong)
    keys = stamps if is_stamped else np.cumsum(shown) - 1
    if is_stamped:
        start_s = _lead_s(container, int(known[0]) * time_base)
        if not jumps and index.is_reliable:
            start_s = index.start_s
        times_s = np.asarray(start_s + (known - known[0]) * time_base, np.float64)
        last = int(scan.durations[int(np.argmax(np.where(shown, stamps, _NONE)))])
        duration_s = float(times_s[-1]) + (last * time_base or interval * time_base)
        if not jumps and index.is_reliable:
            duration_s = index.end_s
        lost = tuple(_span(stamps, n, times_s[0] - known[0] * time_base, time_base) for n in losses)
    else:
        known = np.sort(decoding[shown])
        is_repeated = np.diff(known, prepend=known[:1] - 1) == 0
        if is_dated and time_base > 0 and len(known) and is_repeated.mean() < 0.5:
            times_s = np.asarray((known - known[0]) * time_base, np.float64)
            times_s = np.maximum.accumulate(times_s + np.cumsum(is_repeated) * _SPREAD_S)
            lost = tuple(_span(decoding, n, -known[0] * time_base, time_base) for n in losses)
            duration_s = float(times_s[-1]) + interval * time_base
        else:
            times_s, lost = np.arange(shown.sum()) / rate, ()
            said.append(f"has no timestamps: times are counted at {rate:g} frames a second")
            duration_s = len(times_s) / rate
    warnings = [each for each in index.warnings if not (jumps and each.startswith("truncated"))]
    return Timeline(
        times_s=times_s,
        stamps=known if is_stamped else None,
        jumps=jumps,
        time_base=time_base,
        duration_s=duration_s,
        losses=lost,
        broken=frozenset(keys[losses].tolist()),
        warnings=(*warnings, *said),
    )


def _array(values: array[int]) -> NDArray[np.int64]:
    return np.frombuffer(values, np.int64) if values else np.zeros(0, np.int64)


def _by_index(
    decoding: NDArray[np.int64], positions: NDArray[np.int64], stream: VideoStream
) -> NDArray[np.int64]:
    """Take decoding timestamps from the index of an AVI file.

    FFmpeg counts packets where it had to search for the next one, and so forgets missing ones.
    """
    # An entry gives the place of a chunk, whose header has eight bytes.
    places = {entry.pos + 8: entry.timestamp for entry in stream.index_entries}
    found = np.array([places.get(position, -1) for position in positions.tolist()], np.int64)
    if (found < 0).mean() > _UNINDEXED or bool((np.diff(found[found >= 0]) < 0).any()):
        return decoding
    return np.maximum.accumulate(found)


def _strays(decoding: NDArray[np.int64], time_base: float) -> NDArray[np.bool_]:
    """Return which packets have a timestamp that fits neither neighbour, as damage makes them."""
    strays = np.zeros(len(decoding), bool)
    if len(decoding) > 2:
        least = int(_JUMP_S / time_base) if time_base > 0 else 0
        is_off = np.abs(decoding[1:-1] - decoding[:-2]) > least
        strays[1:-1] = is_off & (np.abs(decoding[2:] - decoding[:-2]) <= least)
    return strays


def _filled(decoding: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give packets without a timestamp that of the packet before."""
    known = np.flatnonzero(decoding != _NONE)
    if not len(known):
        return decoding
    nearest = np.searchsorted(known, np.arange(len(decoding)), side="right") - 1
    return decoding[known[np.maximum(nearest, 0)]]


def _interval(decoding: NDArray[np.int64]) -> float:
    """Return the usual time between packets, in ticks; 0 if it is not known."""
    steps = np.diff(decoding[decoding != _NONE])
    steps = steps[steps > 0]
    return float(np.median(steps)) if len(steps) else 0.0


def _losses(
    scan: PacketScan,
    clock: NDArray[np.int64],
    interval: float,
    time_base: float,
    may_jump: bool,
) -> list[int]:
    """Return the numbers of the packets before which others are missing.

    A slide show has pauses, too. Before a loss, the file holds more bytes that belong to no video
    packet than usual: the sound and a good part of the missing frames. Or the demultiplexer finds
    packets corrupt. ``clock``: timestamps of the packets, which may be reordered.
    """
    if len(clock) <= REORDERED or time_base <= 0:
        return []
    padded = np.concatenate([np.full(REORDERED - 1, clock[0]), clock[:-1]])
    latest = np.lib.stride_tricks.sliding_window_view(padded, REORDERED).max(axis=1)
    known = (clock[1:] != _NONE) & (latest != _NONE)
    steps_s = np.where(known, clock[1:] - latest, 0) * time_base
    pauses = np.flatnonzero(steps_s > max(_LOSS_FRAMES * interval * time_base, _LOSS_S)) + 1
    if not len(pauses):
        return []
    positions, sizes = _array(scan.positions), _array(scan.sizes)
    places = np.flatnonzero(positions >= 0)
    if not len(places):
        return []
    # Several packets can come out of one piece of the file; the first alone has a position.
    sums = np.concatenate([[0], np.cumsum(sizes)])
    nearest = np.searchsorted(places, pauses)
    before, after = places[np.maximum(nearest - 1, 0)], places[np.minimum(nearest, len(places) - 1)]
    inside = positions[after] - positions[before]
    between = np.maximum(inside - (sums[after] - sums[before]), 0)
    lengths_s = steps_s[pauses - 1]
    whole = float(positions[places[-1]] - positions[places[0]])
    others = whole - float(sizes.sum() + between.sum())
    usual_s = len(clock) * interval * time_base
    rate = max(0.0, others) / usual_s
    missing = float(sizes.mean()) * lengths_s / (interval * time_base)
    is_more = between > _USUAL * rate * lengths_s + _LOSS_SHARE * missing
    if may_jump:  # a jump joins two pieces, with nothing between them
        is_long_enough = lengths_s > _JUMP_S
        is_more |= is_long_enough & (
            between > _LOSS_SHARE * (whole - between.sum()) / usual_s * lengths_s
        )
    is_corrupt = np.frombuffer(scan.is_corrupt, np.uint8) > 0
    is_near = is_corrupt[pauses] | is_corrupt[pauses - 1]
    found: list[int] = pauses[is_more | is_near].tolist()
    return found


def _jumps(
    scan: PacketScan,
    decoding: NDArray[np.int64],
    interval: float,
    time_base: float,
    may_jump: bool,
    losses: list[int],
) -> dict[int, int]:
    """Find where the clock of the file jumps, and what makes up for it, from each place on."""
    numbers = np.flatnonzero(decoding != _NONE)
    if len(numbers) < 2 or time_base <= 0:
        return {}
    known = decoding[numbers]
    durations = _array(scan.durations)[numbers]
    ends = known + np.where(durations > 0, durations, max(1, round(interval)))
    deltas = known[1:] - ends[:-1]
    back, forward = (_BACK_S, _JUMP_S) if may_jump else (_ERROR_BACK_S, _ERROR_S)
    is_jump = (np.diff(known) * time_base < -back) | (np.abs(deltas) * time_base > forward)
    jumps: dict[int, int] = {}
    offset = 0
    for place in np.flatnonzero(is_jump).tolist():
        number, delta = int(numbers[place + 1]), int(deltas[place])
        if delta > 0 and number in losses:
            continue  # the time has passed, but its packets are lost
        offset -= delta
        jumps[number] = offset
    return jumps


def _describe_jumps(
    jumps: dict[int, int], decoding: NDArray[np.int64], time_base: float
) -> list[str]:
    if not jumps:
        return []
    first = int(decoding[decoding != _NONE][0])
    places, before = [], 0
    for number, offset in jumps.items():
        at = time_text((int(decoding[number]) - first) * time_base)
        delta_s = (before - offset) * time_base
        places.append(f"by {delta_s:+.1f} s at {at}")
        before = offset
    more = f" and {len(places) - _NAMED} more times" if len(places) > _NAMED else ""
    return [
        f"timestamps jump {', '.join(places[:_NAMED])}{more}; times go on from frame to frame "
        "there, as players show them"
    ]


def _span(
    stamps: NDArray[np.int64], number: int, start_s: float, time_base: float
) -> tuple[float, float]:
    """Return the display times around the loss before a packet."""
    before = stamps[max(0, number - REORDERED) : number]
    after = stamps[number : number + REORDERED]
    last = int(before.max())
    first = int(after[after != _NONE].min(initial=2**62))
    return start_s + last * time_base, start_s + max(last, first) * time_base


def _lead_s(container: InputContainer, first_s: float) -> float:
    """Return how much later than the file's earliest stream the first frame is shown."""
    lead_s = first_s - (container.start_time or 0) / 1_000_000
    # FFmpeg's start is that of the first packets, and rounded to microseconds.
    return lead_s if 0.001 <= lead_s < _JUMP_S else 0.0
