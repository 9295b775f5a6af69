"""Decode a long video once, from its start to its end, and tell when each frame is shown.

As for short videos, the reader seeks to key frames and skips frames that no other needs, where
the format allows both. It never looks back: frames that were given stay given. So damage costs
the frames that it hits, and no others.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xclip_deploy.runtime.video.packet_index import PacketIndex, is_ever_shown
from xclip_deploy.runtime.video.pyav_container import open_video
from xclip_deploy.runtime.video.pyav_reader import (
    SEEKABLE_FORMATS,
    can_skip_unreferenced,
    decode_packet,
    packets_of,
)
from xclip_deploy.runtime.video.taken_frames import TakenFrames
from xclip_deploy.runtime.video.timeline import REORDERED, Timeline

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

Shown = tuple[float, "VideoFrame"]
"""A frame and its time on the player's clock, seconds."""


_MOST_DAMAGE_S = 30.0


class _StampsAreWrongError(Exception):
    """The decoder's order of display is not that of the timestamps."""


class ForwardReader:
    """One pass over a video, as an iterator over frames in the order of display."""

    def __init__(
        self,
        path: Path,
        index: PacketIndex,
        timeline: Timeline,
        targets: NDArray[np.int64] | None,
        taken: TakenFrames,
        alive: Callable[[], None],
    ) -> None:
        """Prepare the pass.

        Args:
            path: The file.
            index: Its packets, of which the key frames are used.
            timeline: Its clock.
            targets: Numbers of the frames that the caller wants, increasing ``[k]``; None wants
                all. Others come too, and take the place of those that are damaged.
            taken: Collects errors.
            alive: Called for every packet.
        """
        self._path = path
        self._timeline = timeline
        self._keyframes = index.keyframes
        self._taken = taken
        self._alive = alive
        self._last_s = -np.inf
        self.warnings: list[str] = []
        stamps = timeline.stamps
        self._wants_all = targets is None
        self._targets = np.zeros(0, np.int64)
        if stamps is not None and targets is not None:
            self._targets = stamps[targets]

    def __iter__(self) -> Iterator[Shown]:
        """Yield frames and their times, which increase."""
        for time_s, frame in self._read():
            if time_s > self._last_s:
                self._last_s = time_s
                yield time_s, frame

    def _read(self) -> Iterator[Shown]:
        if self._timeline.stamps is None:
            yield from self._numbered()
            return
        try:
            container, stream = open_video(self._path)
            with container:
                is_seekable = not SEEKABLE_FORMATS.isdisjoint(container.format.name.split(","))
                if self._wants_all:
                    yield from self._run(container, stream, None)
                    return
                if is_seekable and not self._timeline.jumps:
                    if (yield from self._by_seeking(container, stream)):
                        return
                else:
                    yield from self._run(container, stream, frozenset(self._targets.tolist()))
                    return
            # Seeking did not lead to the frames. Decode all; what was given is not given again.
            container, stream = open_video(self._path)
            with container:
                yield from self._run(container, stream, None)
        except _StampsAreWrongError:
            self.warnings.append(
                "timestamps do not follow the order of display: frames are counted from there"
            )
            yield from self._numbered()

    def _by_seeking(
        self, container: InputContainer, stream: VideoStream
    ) -> Generator[Shown, None, bool]:
        """Yield frames; return whether seeking led to them."""
        import av

        # MP4 and MOV index key frames by decoding time, Matroska by presentation time.
        is_mov = "mov" in container.format.name.split(",")
        starts = [pts for pts, _ in self._keyframes]
        positions = np.searchsorted(starts, self._targets, side="right") - 1
        if len(positions) and positions[0] < 0:
            return False  # no key frame before the target
        groups, firsts = np.unique(positions, return_index=True)
        for group, wanted in zip(groups.tolist(), np.split(self._targets, firsts[1:]), strict=True):
            pts, dts = self._keyframes[group]
            try:
                container.seek(dts if is_mov else pts, stream=stream)
            except av.FFmpegError as error:
                self._taken.note_error(error)
                return False
            errors = self._taken.error_count
            missing = set(wanted.tolist())
            for time_s, frame in self._run(container, stream, frozenset(missing)):
                missing.discard(frame.pts)
                yield time_s, frame
            if missing and self._taken.error_count == errors:
                return False
        return True

    def _run(
        self, container: InputContainer, stream: VideoStream, wanted: frozenset[int] | None
    ) -> Iterator[Shown]:
        """Decode from the container's position until the wanted frames are out; None: to the end.

        Raises _StampsAreWrongError.
        """
        codec = stream.codec_context
        can_skip = wanted is not None and can_skip_unreferenced(codec.name, codec.extradata)
        unsent = set(wanted or ())
        damage = _Damage(self._timeline, self._taken)
        number = offset = 0
        last = -(2**63)
        jumps = self._timeline.jumps

        def shown(frames: list[VideoFrame]) -> Iterator[Shown]:
            nonlocal last
            for frame in frames:
                stamp = frame.pts
                if stamp is None or damage.hides(stamp):
                    continue
                if stamp > last:
                    last = stamp
                    yield self._timeline.time_s(stamp), frame
                elif not (damage.is_there or frame.is_corrupt):
                    raise _StampsAreWrongError

        for packet in self._packets(container, stream):
            if jumps:
                offset = jumps.get(number, offset)
                number += 1
                if packet.pts is not None:
                    packet.pts += offset
            stamp = packet.pts
            if can_skip:
                # Where frames are damaged, any other is worth having.
                codec.skip_frame = "DEFAULT" if stamp in unsent or damage.is_there else "NONREF"
            damage.note(stamp, packet.is_keyframe)
            yield from shown(decode_packet(stream, packet, self._taken))
            damage.note_errors(stamp)
            if wanted is not None:
                unsent.discard(-1 if stamp is None else stamp)
                if not unsent:
                    break
        yield from shown(decode_packet(stream, None, self._taken))  # what the decoder still holds

    def _numbered(self) -> Iterator[Shown]:
        """Decode everything; the packets that frames come from tell their places and times."""
        times_s = self._timeline.times_s
        container, stream = open_video(self._path)
        counter, damage = _Counter(), _Damage(self._timeline, self._taken)

        def shown(frames: list[VideoFrame]) -> Iterator[Shown]:
            for frame in frames:
                place = counter.place(frame.pts, is_key=bool(frame.key_frame))
                if frame.pts is None or not damage.hides(frame.pts):
                    yield _time(times_s, place), frame

        with container:
            number = 0
            for packet in self._packets(container, stream):
                packet.pts = None
                if is_ever_shown(packet, stream.codec_context.name):
                    packet.pts = number
                    number += 1
                damage.note(packet.pts, packet.is_keyframe)
                yield from shown(decode_packet(stream, packet, self._taken))
                damage.note_errors(packet.pts)
            yield from shown(decode_packet(stream, None, self._taken))

    def _packets(self, container: InputContainer, stream: VideoStream) -> Iterator[Packet[Any]]:
        for packet in packets_of(container, stream, self._taken, past_damage=True):
            self._alive()
            yield packet


class _Damage:
    """The frames that cannot be right: those from a damaged packet to the next key frame.

    Decoders guess them from the frames before. Streams that are refreshed bit by bit have no key
    frames, so such a span ends after half a minute at the latest.
    """

    def __init__(self, timeline: Timeline, taken: TakenFrames) -> None:
        self._broken = timeline.broken
        self._taken = taken
        self._errors = taken.error_count
        per_frame = timeline.duration_s / max(1, len(timeline.times_s))
        ticks = timeline.time_base if timeline.stamps is not None else per_frame
        self._most = int(_MOST_DAMAGE_S / ticks) if ticks > 0 else 0
        self._start: int | None = None
        self._end: int | None = None
        self._last = 0  # damaged packet
        self._hid = False
        self.is_there = False
        """Whether there was any."""

    def note(self, stamp: int | None, is_keyframe: bool) -> None:
        """Note a packet before it is decoded."""
        if stamp is None:
            return
        if self._start is not None and self._end is None:
            if is_keyframe:
                self._end = stamp
            else:  # frames that are decoded later may be shown earlier
                self._start = min(self._start, stamp)
        if stamp in self._broken and not is_keyframe:
            self._begin(stamp)

    def note_errors(self, stamp: int | None) -> None:
        """Note a packet after it was decoded."""
        if self._taken.error_count > self._errors:
            self._errors = self._taken.error_count
            if stamp is not None:
                self._begin(stamp)

    def hides(self, stamp: int) -> bool:
        """Return whether the frame of a packet cannot be right."""
        if self._start is None:
            return False
        if stamp < self._start:
            return self._hid  # a frame from before the damage, behind its time
        hides = stamp < self._last + self._most and (self._end is None or stamp < self._end)
        self._hid |= hides
        return hides

    def _begin(self, stamp: int) -> None:
        self.is_there = True
        if self._start is None or self._end is not None:
            self._start, self._end, self._hid = stamp, None, False
        self._start = min(self._start, stamp)
        self._last = stamp


class _Counter:
    """The places of frames in display order, counting those that damage kept from coming."""

    def __init__(self) -> None:
        self._count = 0  # frames that came
        self._lost = 0
        self._passed = 0  # of them, those whose packets lie too far back for others to come
        self._recent: list[int] = []

    def place(self, packet: int | None, *, is_key: bool) -> int:
        """Return the place of the next frame, which comes from the packet of this number."""
        if packet is not None:
            if is_key:
                # All frames of packets before a key frame's are shown before it, and no others
                # than those that came already.
                ahead = sum(number > packet for number in self._recent)
                self._lost = max(self._lost, packet + ahead - self._count)
            heapq.heappush(self._recent, packet)
            # A packet before this one has given its frame, or it never will.
            settled = packet - REORDERED
            while self._recent and self._recent[0] <= settled:
                heapq.heappop(self._recent)
                self._passed += 1
            self._lost = max(self._lost, settled + 1 - self._passed)
        self._count += 1
        place = self._count - 1 + self._lost
        return place if packet is None else min(place, packet + REORDERED)


def _time(times_s: NDArray[np.float64], place: int) -> float:
    """Return the time of a place; beyond the last, frames follow each other closely."""
    if place < len(times_s):
        return float(times_s[place])
    return float(times_s[-1]) + (place - len(times_s) + 1) * 1e-3
