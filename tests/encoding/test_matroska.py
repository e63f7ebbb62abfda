"""Matroska to Matroska: a file with everything that its streams can have comes out with all of it, in the same order."""

from fractions import Fraction

import numpy as np
import pytest

av = pytest.importorskip("av")

from av.stream import Disposition  # noqa: E402

from distill.encoding.container import STATISTICS  # noqa: E402
from tests.encoding.test_companions import MS, STYLES, SubtitleSet, converted, timed  # noqa: E402
from tests.encoding.test_encode import picture_file  # noqa: E402

STREAMS = (  # sound stands first, and one video more than is encoded
    ("aac", "eng", "Sound", Disposition.default), ("libx264", "jpn", "Film", Disposition.default | Disposition.original),
    ("libx264", "und", "Angle", Disposition(0)), ("libopus", "fra", "Commentaire", Disposition.comment),
    ("subrip", "deu", "Erzwungen", Disposition.forced), ("ass", "eng", "Signs", Disposition.default | Disposition.hearing_impaired),
    ("webvtt", "spa", "Texto", Disposition(0)),
)  # fmt: skip
ATTACHED = {
    "a font.ttf": ("font/ttf", b"font" * 9), "cover.jpg": ("image/jpeg", picture_file()), "notes.txt": ("text/plain", b"hello"),
}  # fmt: skip
PARTS = [
    {"id": 7, "start": 0, "end": 200, "time_base": MS, "metadata": {"title": "Eins", "LANGUAGE": "deu"}},
    {"id": 9, "start": 200, "end": 400, "time_base": MS, "metadata": {"title": "Zwei"}},
]


def write(path):
    with av.open(str(path), "w") as out:
        streams = []
        for codec, language, title, flags in STREAMS:
            sound = (
                {"rate": 48000, "layout": "mono"} if codec in ("aac", "libopus") else {"rate": 25} if codec == "libx264" else {}
            )
            stream = out.add_stream(codec, **sound)
            if codec == "libx264":
                stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            elif not sound:
                stream.codec_context.subtitle_header, stream.time_base, stream.codec_context.time_base = STYLES, MS, MS
            stream.metadata.update(language=language, title=title, MYTAG=title[::-1])
            stream.disposition = flags
            streams.append(stream)
        out.metadata.update(title="A film", ARTIST="Somebody", COMMENT="änderung")
        out.set_chapters(PARTS)
        for name, (kind, data) in ATTACHED.items():
            out.add_attachment(name, kind, data)
        out.start_encoding()
        for n in range(10):
            for stream in streams:
                if stream.type == "video":
                    frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 20 * n, np.uint8))
                    frame.pts, frame.time_base = n, Fraction(1, 25)
                    out.mux(stream.encode(frame))
                elif stream.type == "audio":
                    tone = av.AudioFrame.from_ndarray(
                        (999 * np.sin(np.arange(1920) * 0.1)).astype(np.int16)[None], "s16", "mono"
                    )
                    tone.sample_rate, tone.pts, tone.time_base = 48000, 1920 * n, Fraction(1, 48000)
                    out.mux(stream.encode(tone))
                elif n % 5 == 0:
                    packet = stream.codec_context.encode_subtitle(SubtitleSet.create(b"0,0,Default,,0,0,0,,words", 0, 100))
                    out.mux(timed(packet, stream, 40 * n, 100))
        for stream in streams[:4]:
            out.mux(stream.encode(None))
    return path


def facts(path):
    with av.open(str(path)) as container:
        streams = [
            (s.type, s.disposition, {k: v for k, v in s.metadata.items() if not STATISTICS.match(k)}, getattr(s, "data", None))
            for s in container.streams
        ]
        return dict(container.metadata), list(container.chapters()), streams


def packets(path):
    found = {}
    with av.open(str(path)) as container:
        for packet in container.demux():
            if packet.size and packet.stream.index != 1:
                found.setdefault(packet.stream.index, []).append((packet.pts, packet.duration, bytes(packet)))
    return found


def test_everything_is_kept(tmp_path):
    source = write(tmp_path / "in.mkv")
    assert converted(source, tmp_path / "out.mkv") == []
    before, after = facts(source), facts(tmp_path / "out.mkv")
    assert before == after and [s[0] for s in after[2]].count("attachment") == 2
    assert [s[1] for s in after[2]][:7] == [flags for *_, flags in STREAMS]
    assert packets(source) == packets(tmp_path / "out.mkv") and len(packets(source)) == 7  # the cover is one


def test_what_another_container_does_not_hold_is_named(tmp_path):
    [*conversions, left_out] = converted(write(tmp_path / "in.mkv"), tmp_path / "out.mp4")
    assert [line.split(";")[0] for line in conversions] == [
        f"subtitle stream {n} ({codec}, {language}) becomes mov_text"
        for n, (codec, language, *_) in enumerate(STREAMS)
        if n > 3
    ]
    assert left_out == "left out: attachment a font.ttf (.mkv keeps it), attachment notes.txt (.mkv keeps it)"
    assert [s[0] for s in facts(tmp_path / "out.mp4")[2]].count("video") == 3
