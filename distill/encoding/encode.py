"""A video through x264 or x265 with more bits where people look: a QP offset for every block of every frame.

    source -> planner (saliency map, QP offsets) -> regions on the frame -> encoder -> container

The offsets can also, or only, be written to a file for another encoder (`roi_files`).
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import av

from distill.corpora.readers.pyav import open_container, video_stream
from distill.encoding import source as videos
from distill.encoding.container import EncodedFile, check_holds, format_of
from distill.encoding.encoders import Coding, Picture, check_coding
from distill.encoding.maps import Maps
from distill.encoding.passes import Plan, two_passes
from distill.encoding.planner import Planner, at_rate
from distill.encoding.qp_offsets import Shaping
from distill.encoding.regions import RegionMarker, check_map_counts
from distill.encoding.roi_files import FORMATS, GOPS, RoiFile, RoiOutput, addroi_command
from distill.export.streaming import Stream
from distill.run.errors import UsageError
from distill.run.files import check_distinct, write_bytes
from distill.run.machine.pipes import as_file, is_stream
from distill.run.progress import Narrator


def check_outputs(
    source: Path, target: Path | None, model: Path | None, map_name: str | None, roi_file: Path | None, format_: str | None,
    container: str | None = None, gop: int | None = None,
) -> RoiOutput | None:  # fmt: skip
    """The file for another encoder, if requested. Raises UsageError for options that do not go together, and where an output is a
    folder, another output, a file that is read, or of no known container."""
    if (roi_file is None) != (format_ is None):
        raise UsageError(f"--roi-out FILE and --format go together; formats: {', '.join(FORMATS)}")
    if target is None and roi_file is None:
        raise UsageError("name the file to write, or a --roi-out")
    if format_ not in (None, *FORMATS):
        raise UsageError(f"--format {format_} is unknown; there are {', '.join(FORMATS)}")
    if gop is not None and (format_ != "kvazaar" or gop not in GOPS):
        raise UsageError(f"--gop {gop}: goes with --format kvazaar, and is one of {', '.join(map(str, GOPS))}")
    if roi_file and map_name == "none":
        raise UsageError("--map none has no map to write with --roi-out")
    for path in (target, roi_file):
        if path and path.is_dir():
            raise UsageError(f"{path} is a folder; name the file to write in it")
    if roi_file and is_stream(roi_file):
        raise UsageError(f"--roi-out {roi_file}: maps go to a file, not to a pipe or a device; name one")
    replaced = None if target is None or is_stream(target) else target
    read = None if is_stream(source) else source
    check_distinct({"OUTPUT": replaced, "--roi-out": roi_file}, [("INPUT", read), ("--model", model)])
    if target:
        format_of(target, container)
    if roi_file is None or format_ is None:
        return None
    return RoiOutput(roi_file, format_) if gop is None else RoiOutput(roi_file, format_, gop)


def encode(
    source: Path, target: Path | None, maps: Stream | Maps | None, coding: Coding, shaping: Shaping, narrator: Narrator,
    roi: RoiOutput | None = None, video_only: bool = False, container: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Encodes a video with a map for every frame, writes the offsets for another encoder (`roi`), or both.

    source, target: files, pipes or `-`. container: one of `CONTAINERS` instead of the one that the suffix names.
    maps: a student's stream, or any function that gives maps; None encodes without.
    Returns, ready for JSON: files; codec; frames; seconds, bytes and kbps of the video stream; cuts, the number that a stream
    found; offsets, see `Planner.summary`.

    Raises UsageError for a video, container, encoder or option that cannot be used, and where the map would be ignored; ReaderGone
    where nobody reads the target any more.
    """
    if target:
        check_coding(coding)
        check_holds(target, container, coding)
    with as_file(source, narrator.stop) as file:
        facts, planner, picture = _encode_file(file, target, maps, coding, shaping, narrator, roi, video_only, container)
    if roi and roi.format == "addroi":
        write_bytes(roi.path, addroi_command(source, planner.static(), shaping.block, picture.size, picture.bits))
    return facts


def _encode_file(
    source: Path, target: Path | None, maps: Stream | Maps | None, coding: Coding, shaping: Shaping, narrator: Narrator,
    roi: RoiOutput | None, video_only: bool, holder: str | None,
) -> tuple[dict[str, Any], Planner, Picture]:  # fmt: skip
    contents = videos.survey(source)
    first = videos.first_frame(source)
    if contents.cut:
        narrator.say(
            f"{source.name} ends inside a packet, as a copy that was broken off; is it complete? What is there is encoded"
        )
    with open_container(source, coding.threads) as container, ExitStack() as stack:
        video = video_stream(container)
        picture = videos.describe_picture(video, first, contents.rate, coding if target else None, narrator)
        if isinstance(maps, Stream) and (note := maps.rate_note(source.name, float(picture.rate))):
            narrator.say(note)
        if target and maps:
            check_map_counts(picture, coding)
        planner = Planner(picture, maps, at_rate(shaping, coding))
        if roi and maps and roi.format != "addroi":
            planner.add_file(stack.enter_context(RoiFile(roi, picture.size, shaping.block)))
        plan: Plan = planner.plan
        second, out = None, None
        if target and coding.two_pass:

            def measured() -> Iterator[av.VideoFrame]:
                with open_container(source, coding.threads) as again:
                    frames = videos.read_frames(source, again, contents.rate, {}, Narrator(quiet=True))
                    yield from narrator.track(frames, "first pass", contents.frames, "frames")

            second, plan = stack.enter_context(two_passes(measured, planner, picture, coding, shaping.block))
        if target:
            out = EncodedFile(
                stack, target, container, first, picture, coding, contents.samples, video_only, narrator, second, holder
            )
        marker, frames = RegionMarker(picture, shaping.block), 0
        read = videos.read_frames(source, container, contents.rate, out.companions if out else {}, narrator)
        for frames, frame in enumerate(narrator.track(read, "encode", contents.frames, "frames"), 1):  # noqa: B007
            offsets = plan(frame)
            if out:
                out.write(marker.mark(frame, offsets))
        if out:
            out.finish(frames)
    size = out.bytes if out else 0
    facts = {
        "files": [str(path) for path in (target, roi.path if roi else None) if path and not is_stream(path)],
        "codec": coding.codec if target else None,
        "frames": planner.frames,
        "seconds": round(planner.seconds, 3),
        "bytes": size,
        "kbps": round(size * 8 / 1000 / planner.seconds, 1),
        "cuts": maps.cuts if isinstance(maps, Stream) else None,
        "offsets": planner.summary(),
    }
    return facts, planner, picture
