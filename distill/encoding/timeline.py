"""Time stamps that a container can hold: the packets of a file on one count, and those of each stream in rising order."""

from fractions import Fraction
from typing import Any

import av

RESET = 5  # frames; stamps that fall back by more begin a new count


class Timeline:
    """Puts the packets of all streams of a file on one count, from their first stamps on.

    rate: frames per second.
    Where the stamps of a stream fall back by more than RESET a new count begins, as at the joint of two recordings: the packet
    follows all those before, and the other streams keep their distance from it. A single wrong stamp changes nothing after it.
    """

    def __init__(self, container: Any, video: Any, rate: Fraction) -> None:
        # The clock of an MPEG stream starts anywhere; elsewhere a late start is meant.
        clock = bool(container.format.flags & av.format.Flags.ts_discont.value)
        start = Fraction(container.start_time or 0, av.time_base) if clock else Fraction(0)
        self._offsets = [-start]  # of every count so far, in seconds
        self._end = -start  # of all packets so far
        self._video = video.index
        self._step = 1 / rate
        self._state: dict[int, tuple[Fraction, Fraction]] = {}  # of each stream: its latest time, and its offset

    @property
    def counts(self) -> int:
        """How many counts there have been."""
        return len(self._offsets)

    def place(self, packet: av.Packet) -> None:
        """Moves the stamps of the next packet that the file holds."""
        stamp = packet.pts if packet.dts is None else packet.dts
        if stamp is None or packet.time_base is None:
            return
        index, now = packet.stream.index, stamp * packet.time_base
        sparse = packet.stream.type not in ("video", "audio")
        latest, offset = self._state.get(self._video if sparse else index, (None, self._offsets[0]))
        reordered = packet.dts is None and packet.stream.type == "video"  # the first ones: that they are ahead means nothing
        if latest is not None and not sparse and not reordered:
            offset = self._offset(now, latest, offset)
        if not sparse and not reordered:
            self._state[index] = now + offset, offset
            self._end = max(self._end, now + offset + ((packet.duration or 0) * packet.time_base or self._step))
        ticks = round(offset / packet.time_base)
        packet.pts = None if packet.pts is None else packet.pts + ticks
        packet.dts = None if packet.dts is None else packet.dts + ticks

    def _offset(self, now: Fraction, latest: Fraction, offset: Fraction) -> Fraction:
        jump = now + offset - latest
        if abs(jump) <= RESET * self._step:
            return offset
        for known in reversed(self._offsets):  # where another stream has begun the count, or this one returns to it
            if abs(now + known - latest) <= RESET * self._step:
                return known
        if jump > 0:
            return offset  # a pause
        if now + self._offsets[-1] < latest:
            self._offsets.append(self._end - now)
        return self._offsets[-1]


class Rising:
    """Makes the decoding times of one stream's packets rise, by the smallest steps, in the time base of the output.

    equal: whether the container takes equal times. They are then left where packets are too short for a step: it would add up.
    sparse: of subtitles, several may begin at one time, in every container.
    """

    def __init__(self, time_base: Fraction, equal: bool, sparse: bool = False) -> None:
        self.time_base, self.equal, self.sparse = time_base, equal, sparse
        self.moved, self.furthest = 0, 0  # packets, and ticks
        self._next: int | None = None  # where a packet without any stamp goes
        self._before: int | None = None

    def fix(self, packet: av.Packet) -> None:
        """Rescales the packet's stamps, and moves them on where they do not rise."""
        scale = (packet.time_base or self.time_base) / self.time_base
        dts, pts = (None if stamp is None else round(stamp * scale) for stamp in (packet.dts, packet.pts))
        duration = round((packet.duration or 0) * scale)
        if dts is None:
            dts = self._next or 0 if pts is None else pts
        if self._before is not None:
            step = 0 if self.sparse or (self.equal and duration <= 1) else 1
            if (late := self._before + step - dts) > 0:
                self.moved, self.furthest = self.moved + 1, max(self.furthest, late)
                dts, pts = dts + late, None if pts is None else pts + late
        self._before, self._next = dts, dts + max(duration, 1)
        packet.time_base = self.time_base
        packet.dts, packet.pts, packet.duration = dts, dts if pts is None else max(pts, dts), duration
