"""Writing the encoded video: time stamps, rotation, metadata, flags and chapters are preserved; for other streams see `companions`.

Streams keep their order. Attachments and cover art go where the container can hold them; what is left out is reported.
"""

import contextlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.stream import Disposition

from distill.corpora.readers.pyav import open_container, video_stream
from distill.encoding.companions import Companion, add_companion, describe, naming
from distill.encoding.encoders import Coding, Pass, Picture, configure, refusals
from distill.run.errors import UsageError
from distill.run.files import atomic
from distill.run.machine.pipes import StreamWriter, is_stream, name_of
from distill.run.progress import Narrator

CONTAINERS = {
    "mkv": "matroska",
    "mp4": "mp4",
    "mov": "mov",
    "ts": "mpegts",
    "avi": "avi",
    "flv": "flv",
    "nut": "nut",
}  # FFmpeg's names
FRAGMENTS = {"movflags": "frag_keyframe+delay_moov+default_base_moof"}  # where nobody can go back to complete the header
COVERS = {"mjpeg": ("jpg", "image/jpeg"), "png": ("png", "image/png")}
CHAPTERS = ("matroska", "mp4", "mov", "ipod", "3gp", "nut")  # containers that hold them
STATISTICS = re.compile(r"encoder$|BPS|DURATION|NUMBER_OF_|_STATISTICS_")  # tags that no longer hold for the encoded video


def format_of(target: Path, container: str | None) -> str | None:
    """FFmpeg's name of the container to write; None where the suffix of a file names it. Raises UsageError for an unknown one."""
    if container is not None and container not in CONTAINERS:
        raise UsageError(f"--container {container} is unknown; there are {', '.join(CONTAINERS)}")
    if container is None and is_stream(target):
        container = target.suffix[1:].lower() if target.suffix[1:].lower() in CONTAINERS else "mkv"
    return CONTAINERS[container] if container else None


def check_holds(target: Path, container: str | None, coding: Coding) -> None:
    """Raises UsageError where the container is unknown, or cannot hold the codec."""
    name, memory = format_of(target, container), io.BytesIO()
    memory.name = f"_{target.suffix}"
    try:
        trial = av.open(memory, "w", format=name)
    except ValueError:
        raise UsageError(f"{target}: the suffix names no container; .mp4 and .mkv do") from None
    try:
        trial.add_stream(coding.encoder)
    except ValueError as error:
        raise UsageError(f"{target} cannot hold {coding.codec} video ({error}); write .mp4 or .mkv") from None


class EncodedFile:
    """The encoded file. The end of `stack` closes it, and gives it its name only where there was no error."""

    def __init__(
        self, stack: contextlib.ExitStack, target: Path, source: Any, first: av.VideoFrame, picture: Picture, coding: Coding,
        samples: Mapping[int, av.Packet], video_only: bool, narrator: Narrator, of: Pass | None = None, container: str | None = None,
    ) -> None:  # fmt: skip
        """samples: a packet of each stream of the source, by its index; of: which of two passes writes; container: see `format_of`."""
        self.target, self.source, self.narrator = name_of(target, "output"), source, narrator
        self.companions: dict[int, Companion] = {}  # by the index of the source's stream
        self.bytes = self.packets = 0
        self._covers: list[tuple[Any, av.Packet]] = []
        self._pipe: StreamWriter | None = None
        format_ = format_of(target, container)
        if is_stream(target):
            self._pipe = stack.enter_context(StreamWriter(target, narrator.stop))
            options = FRAGMENTS if format_ in ("mp4", "mov") and not self._pipe.seekable() else {}
            self.container: Any = av.open(self._pipe, "w", format=format_, options=options)
        else:
            self.container = av.open(str(stack.enter_context(atomic(target)).absolute()), "w", format=format_)
        stack.push(self._close)
        video, chapters, left_out = video_stream(source), source.chapters(), []
        for stream in source.streams:
            if stream.index == video.index:
                self._add_video(video, first, picture, coding, of)
            elif not (video_only or (chapters and stream.type == "data" and stream.name == "bin_data")):
                # The chapters' texts of MP4 are such a stream; they are written anew.
                left_out += self._add_stream(stream, samples.get(stream.index))
        if chapters and self.container.format.name not in CHAPTERS:
            left_out.append("chapters (.mp4 and .mkv keep them)")
        if left_out:
            narrator.say(f"left out: {', '.join(left_out)}")
        self.container.metadata.update(source.metadata)
        self.container.set_chapters(chapters)
        with refusals(coding, picture):
            self.stream.codec_context.open(strict=False)
        with naming(f"{self.target} cannot be written"):
            self.container.start_encoding()
        for copy, cover in self._covers:
            cover.stream, cover.pts, cover.dts = copy, 0, 0
            self.container.mux(cover)

    def _add_video(self, video: Any, first: av.VideoFrame, picture: Picture, coding: Coding, of: Pass | None) -> None:
        self.stream = cast(av.VideoStream, self.container.add_stream(coding.encoder, rate=picture.rate))
        configure(self.stream.codec_context, picture, coding, of)
        if coding.codec == "x265" and self.container.format.name in ("mp4", "mov"):
            self.stream.codec_context.codec_tag = "hvc1"  # Apple's players open no other
        self.stream.time_base = picture.time_base
        matrix: Any = first.side_data.get("DISPLAYMATRIX")
        if matrix:
            self.stream.set_display_matrix(np.frombuffer(bytes(matrix), np.int32).tolist())
        self.stream.metadata.update({k: v for k, v in video.metadata.items() if not STATISTICS.match(k)})
        self.stream.disposition = video.disposition

    def _add_stream(self, stream: Any, sample: av.Packet | None) -> list[str]:
        """Prepares the stream's copy; returns its description where it is left out."""
        cover = bool(stream.disposition & Disposition.attached_pic)
        if stream.type not in ("audio", "subtitle", "video") or cover:
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
        if self._pipe:
            self._pipe.check()

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
        if self._pipe and not kind:
            self._pipe.check()


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
