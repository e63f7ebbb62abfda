"""Writing the encoded video: time stamps, rotation, metadata and chapters are preserved; for other streams see `companions`.

Attachments and cover art go where the container can hold them; what is left out is reported.
"""

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.stream import Disposition

from distill.corpora.readers.pyav import open_container, video_stream
from distill.encoding.companions import Companion, add_companion, describe, naming
from distill.encoding.encoders import Coding, Picture, configure, refusals
from distill.run.errors import UsageError
from distill.run.files import atomic
from distill.run.progress import Narrator

COVERS = {"mjpeg": ("jpg", "image/jpeg"), "png": ("png", "image/png")}
CHAPTERS = ("matroska", "mp4", "mov", "ipod", "3gp", "nut")  # containers that hold them
STATISTICS = re.compile(r"encoder$|BPS|DURATION|NUMBER_OF_|_STATISTICS_")  # tags that no longer hold for the encoded video


class EncodedFile:
    """The encoded file. The end of `stack` closes it, and gives it its name only where there was no error."""

    def __init__(
        self, stack: contextlib.ExitStack, target: Path, source: Any, first: av.VideoFrame, picture: Picture, coding: Coding,
        samples: Mapping[int, av.Packet], video_only: bool, narrator: Narrator,
    ) -> None:  # fmt: skip
        """samples: a packet of each stream of the source, by its index."""
        self.target, self.source, self.narrator = target, source, narrator
        self.companions: dict[int, Companion] = {}  # by the index of the source's stream
        self.bytes = self.packets = 0
        self._covers: list[tuple[Any, av.Packet]] = []
        temporary = stack.enter_context(atomic(target))
        try:
            self.container = av.open(str(temporary.absolute()), "w")
        except ValueError:
            raise UsageError(f"{target}: the suffix names no container; .mp4 and .mkv do") from None
        stack.push(self._close)
        try:
            self.stream = cast(av.VideoStream, self.container.add_stream(coding.library, rate=picture.rate))
        except ValueError as error:
            raise UsageError(f"{target} cannot hold {coding.codec} video ({error}); write .mp4 or .mkv") from None
        configure(self.stream.codec_context, picture, coding)
        self.stream.time_base = picture.time_base
        matrix: Any = first.side_data.get("DISPLAYMATRIX")
        if matrix:
            self.stream.set_display_matrix(np.frombuffer(bytes(matrix), np.int32).tolist())
        video = video_stream(source)
        self.stream.metadata.update({k: v for k, v in video.metadata.items() if not STATISTICS.match(k)})
        chapters = source.chapters()
        left_out = []
        for stream in source.streams if not video_only else ():
            chapters_text = chapters and stream.type == "data" and stream.name == "bin_data"  # of MP4; they are written anew
            if stream.index != video.index and not chapters_text:
                left_out += self._add_stream(stream, samples.get(stream.index))
        if chapters and self.container.format.name not in CHAPTERS:
            left_out.append("chapters (.mp4 and .mkv keep them)")
        if left_out:
            narrator.say(f"left out: {', '.join(left_out)}")
        self.container.metadata.update(source.metadata)
        self.container.set_chapters(chapters)
        with refusals(coding, picture):
            self.container.start_encoding()
        for copy, cover in self._covers:
            cover.stream, cover.pts, cover.dts = copy, 0, 0
            self.container.mux(cover)

    def _add_stream(self, stream: Any, sample: av.Packet | None) -> list[str]:
        """Prepares the stream's copy; returns its description where it is left out."""
        if stream.type not in ("audio", "subtitle"):
            return [] if self._attach(stream) else [_describe(stream)]
        companion, note = add_companion(self.container, stream, sample)
        if companion is None:
            return [note]
        self.companions[stream.index] = companion
        if note:
            self.narrator.say(note)
        return []

    def _attach(self, stream: Any) -> bool:
        """Copies cover art or an attachment, as the container holds them; False where it cannot."""
        holder, codec = self.container.format.name, stream.codec_context.name if stream.codec_context else ""
        if stream.type == "attachment" and holder == "matroska" and stream.mimetype:
            self.container.add_attachment(stream.name or "attachment", stream.mimetype, stream.data)
            return True
        if not stream.disposition & Disposition.attached_pic or codec not in COVERS:
            return False
        # The picture is a packet, needed before the output's header is written: read it from a second handle.
        with open_container(Path(self.source.name)) as again:
            packet = next(again.demux(again.streams[stream.index]))
        suffix, kind = COVERS[codec]
        if holder == "matroska":
            self.container.add_attachment(stream.metadata.get("filename", f"cover.{suffix}"), kind, bytes(packet))
        elif holder == "mp4":
            copy = self.container.add_stream_from_template(stream)
            copy.disposition = Disposition.attached_pic
            self._covers.append((copy, packet))
        return holder in ("matroska", "mp4")

    def write(self, frame: av.VideoFrame | None) -> None:
        """Encodes a frame; None flushes the encoder."""
        packets = self.stream.encode(frame)
        if frame is None and self.packets == 0:
            _set_decoding_times(packets)
        for packet in packets:
            self.bytes += packet.size
            self.packets += 1
            with naming(f"{self.target}: the video cannot be written"):
                self.container.mux(packet)

    def finish(self, frames: int) -> None:
        """Flushes the encoder. Raises UsageError where it has dropped frames."""
        self.write(None)
        for companion in self.companions.values():
            for note in companion.finish():
                self.narrator.say(note)
        if self.packets != frames:
            raise UsageError(f"{self.target}: {frames} frames went in, {self.packets} came out")

    def _close(self, kind: type[BaseException] | None, *_: object) -> None:
        with contextlib.suppress(av.FFmpegError) if kind else naming(f"{self.target} cannot be finished"):
            self.container.close()


def _set_decoding_times(packets: list[av.Packet]) -> None:
    """Recomputes the decoding times of all packets of a clip: x265 leaves them undefined in clips of two or three frames."""
    shown = sorted(packet.pts for packet in packets if packet.pts is not None)
    delay = max((time - (packet.pts or 0) for packet, time in zip(packets, shown, strict=True)), default=0)
    for packet, time in zip(packets, shown, strict=True):
        packet.dts = time - delay


def _describe(stream: Any) -> str:
    if stream.disposition & Disposition.attached_pic:
        return "cover art (.mp4 and .mkv keep it)"
    if stream.type == "attachment":
        return f"attachment {stream.name} (.mkv keeps it)"
    return describe(stream)
