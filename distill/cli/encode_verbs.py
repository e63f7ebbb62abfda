"""Verbs that encode video with a saliency map: `encode` writes one file, `bd` measures what a map gains."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from distill.cli.options import SHIPPED, EncoderOptions, ModelOption, Output
from distill.cli.output import interruptible, print_cells, print_files, print_json, print_text, shipped
from distill.run.errors import Interrupted, UsageError
from distill.run.files import check_distinct, check_writable
from distill.run.machine import extras

if TYPE_CHECKING:
    from distill.encoding.qp_offsets import Shaping

OUTPUT = ".mp4, .mkv, ...; - for standard output; optional with --roi-out"
BUFSIZE = "kbit of a decoder's buffer that --maxrate fills; default: those of one second"
CONTAINER = "mkv, mp4, mov, ts, ...; default: by the suffix, and mkv for - and pipes"
GOP = "the --gop that kvazaar will run with, whose order its maps need: 0, 8 or 16, the default and kvazaar's own"
START = "where in each clip they begin; in the first second gaze sits in the middle, whatever is shown"
CONTROL = "crf; 2pass; vbv (one pass, a decoder that holds one second): BD-rate is of the rates that come out"
CRFS = "22,27,32,37"
MEASURES = "psnr, ssim, xpsnr, vmaf (and VMAF-NEG); default: all that are there; psnr is always taken"
OBSERVERS = "half of the observers as one more map, where they are known: all weights are then those of the other half"


def encode(
    *,
    source: Annotated[Path, Argument(metavar="INPUT", help="a video file; - for standard input")],
    target: Annotated[Path | None, Argument(metavar="OUTPUT", help=OUTPUT)] = None,
    model: ModelOption = None,
    map_: Annotated[str | None, Option("--map", help="instead of a model: centre (a centred Gaussian), none")] = None,
    crf: Annotated[float | None, Option(help="constant quality; default 23 (x264), 28 (x265)")] = None,
    bitrate: Annotated[int | None, Option(help="kbit/s, instead of --crf", min=1)] = None,
    two_pass: Annotated[bool, Option("--two-pass", help="meet --bitrate by a first pass that measures")] = False,
    maxrate: Annotated[int | None, Option(help="kbit/s that the stream never needs more of", min=1)] = None,
    bufsize: Annotated[int | None, Option(help=BUFSIZE, min=1)] = None,
    tune: Annotated[str, Option(help="the encoder's tuning: film, grain, zerolatency, ...")] = "",
    profile: Annotated[str, Option(help="profile of the stream: high, main10, ...")] = "",
    params: Annotated[list[str] | None, Option("--param", metavar="KEY=VALUE", help="encoder option; repeatable")] = None,
    encoder: EncoderOptions,
    container: Annotated[str | None, Option(help=CONTAINER)] = None,
    cuts: Annotated[bool, Option("--cuts/--no-cuts", help="scene cuts reset the model's state")] = True,
    roi_out: Annotated[Path | None, Option(metavar="FILE", help="write the offsets for another encoder")] = None,
    format_: Annotated[
        str | None, Option("--format", help="of --roi-out: kvazaar (text, or *.bin), svt-av1, addroi, int8")
    ] = None,
    gop: Annotated[int | None, Option(help=GOP)] = None,
    video_only: Annotated[bool, Option("--video-only", help="leave audio and subtitles out")] = False,
    threads: Annotated[int, Option(help="threads of model and encoder; 0: one, and the encoder's default", min=0)] = 0,
    output: Output,
) -> None:
    """Encode a video with more bits where people look: x264 or x265, a QP offset for every block of every frame.

    [bold]distill encode in.mp4 out.mp4 --codec x265 --crf 26[/bold] encodes with the student that ships with this package.
    """
    extras.require("encode")  # before the imports, which need it
    from distill.corpora.clips import counted
    from distill.encoding.encode import check_outputs
    from distill.encoding.encode import encode as encode_video
    from distill.encoding.encoders import Coding
    from distill.encoding.maps import open_maps
    from distill.run.machine.parallel import usable_cores
    from distill.run.machine.pipes import ReaderGone, is_stream

    shaping = _shaping(encoder)
    coding = Coding(
        encoder.codec, preset=encoder.preset, threads=threads, crf=crf, bitrate=bitrate, params=tuple(params or []),
        two_pass=two_pass, maxrate=maxrate, bufsize=bufsize, tune=tune, profile=profile,
    )  # fmt: skip
    roi = check_outputs(source, target, model, map_, roi_out, format_, container, gop)
    piped = target is not None and is_stream(target)
    if piped and output.as_json:
        raise UsageError(f"--json would mix with the video on {target}; name a file as OUTPUT, or leave --json out")
    narrator = interruptible(output.quiet)
    if model is None and map_ is None:
        model = shipped(narrator)
    maps = open_maps(model, map_, cuts, min(threads or 1, usable_cores()))  # more would wait for each other
    try:
        facts = encode_video(source, target, maps, coding, shaping, narrator, roi, video_only, container)
    except ReaderGone as gone:
        narrator.say(f"{gone}; the rest is not encoded")
        return
    if output.as_json:
        print_json({"schema": 1, **facts})
        return
    show = narrator.say if piped else print_text  # beside a video nothing else goes to standard output
    if target:
        show(f"{counted(facts['frames'], 'frame')}, {facts['bytes']:,} bytes of video, {facts['kbps']:g} kbit/s")
    if offsets := facts["offsets"]:
        changes = counted(offsets["changes"], "frame")
        show("QP offsets from {lowest:+d} to {highest:+d}, mean {mean:+.2f}; changes in {}".format(changes, **offsets))
    for path in facts["files"]:
        show(path)


def bd(
    *,
    inputs: Annotated[list[Path] | None, Argument(metavar="INPUT", help="videos")] = None,
    models: Annotated[
        list[Path] | None, Option("--model", "-m", metavar="ONNX", help=f"ONNX student; repeatable; {SHIPPED}")
    ] = None,
    judge: Annotated[Path | None, Option(metavar="ONNX", help="another model, to weight clips without gaze")] = None,
    corpus: Annotated[str | None, Option(help="clips with gaze: corpus.name")] = None,
    root: Annotated[Path | None, Option(help="folder of the corpus")] = None,
    clips: Annotated[str | None, Option(metavar="ID,ID", help="clips of the corpus; default: all with gaze")] = None,
    frames: Annotated[str, Option(metavar="N|all", help="frames of each clip")] = "100",
    start: Annotated[str, Option(metavar="SECONDS|middle", help=START)] = "1",
    control: Annotated[str, Option("--rate-control", help=CONTROL)] = "crf",
    crfs: Annotated[str | None, Option("--crf", metavar="N,N", help=f"the rates of crf; default {CRFS}")] = None,
    bitrates: Annotated[str | None, Option("--bitrate", metavar="N,N", help="those of 2pass and vbv, in kbit/s")] = None,
    measures: Annotated[str | None, Option(metavar="NAME,NAME", help=MEASURES)] = None,
    strengths: Annotated[
        str | None, Option(metavar="N,N", help="several, to see what each map gains and costs by strength")
    ] = None,
    observers: Annotated[bool, Option("--observers", help=OBSERVERS)] = False,
    encoder: EncoderOptions,
    out: Annotated[
        Path | None, Option("--out", "-o", metavar="PNG", help="draw the curves; of several strengths, the gain")
    ] = None,
    table: Annotated[Path | None, Option("--csv", metavar="FILE", help="write all values, one per line")] = None,
    jobs: Annotated[int, Option("--jobs", "-j", help="clips at the same time, each with one encoder thread", min=1)] = 1,
    threads: Annotated[int, Option(help="threads of the encoder; 0: its default", min=0)] = 0,
    output: Output,
) -> None:
    """BD-rate of saliency-guided encoding: each model's map, and a centred Gaussian, against no map.

    Quality is PSNR, over all pixels equally and weighted by where people look; and SSIM, XPSNR and VMAF of the whole frame.
    With --csv or --out, the same command continues after an interrupt.

    [bold]distill bd --corpus dhf1k --root DHF1K --clips 601,602 -o curves.png[/bold] compares the student that ships.
    """
    extras.require("encode")
    from distill.encoding.bd import tables
    from distill.encoding.bd.clips import Work
    from distill.encoding.bd.compare import CONTROLS, compare, make_codings
    from distill.encoding.bd.excerpts import find_sources, read_span, unique_names
    from distill.encoding.bd.measures import choose_measures
    from distill.encoding.encoders import Coding
    from distill.evaluation.statistics import ENOUGH_CLIPS

    check_writable({"--out": out, "--csv": table})
    read = {"INPUT": inputs, "--model": models, "--judge": [judge] if judge else None}
    check_distinct({"--out": out, "--csv": table}, [(what, path) for what, paths in read.items() for path in paths or []])
    shapings = _sweep(encoder, strengths)
    span = read_span(frames, start)
    if control in CONTROLS and ((bitrates if control == "crf" else crfs) or not (bitrates or control == "crf")):
        raise UsageError("--rate-control crf takes --crf N,N, and 2pass and vbv take --bitrate N,N")
    rates = bitrates or crfs or CRFS
    coding = Coding(encoder.codec, preset=encoder.preset, threads=threads or (1 if jobs > 1 else 0))
    codings = make_codings(coding, control, rates)
    if out and find_spec("matplotlib") is None:  # not of the extra `encode`
        raise UsageError("--out draws with matplotlib, which is not installed; pip install matplotlib")
    chosen, left_out = choose_measures(measures)
    narrator = interruptible(output.quiet)
    sources = find_sources(inputs or [], corpus, root, clips, span, narrator, observers)
    if left_out:
        narrator.say(left_out)
    models = models or [shipped(narrator)]
    work = Work(unique_names(models), codings, shapings, chosen, judge, observers)
    kept = next((path.with_name(f"{path.name}.unfinished") for path in (table, out) if path), None)
    result = compare(sources, span, work, narrator, jobs, kept)
    result["files"] = [str(path) for path in (out, table) if path]
    if out:
        tables.plot(result, out)
    if table:
        tables.write_csv(result, table)
    if kept and not result["unfinished"]:
        kept.unlink(missing_ok=True)
    if output.as_json:
        print_json({"schema": 1, **result})
    else:
        at = f"CRF {rates}" if control == "crf" else f"{control} {rates} kbit/s"
        strength = f", strength {shapings[0][1].strength:g}" if len(shapings) == 1 else ""
        settings = f"{encoder.codec} {encoder.preset}, {at}, mapping {encoder.mapping}{strength}, {span}"
        done, heading = len(result["clips"]), f"{settings}, against no map"
        if len(shapings) == 1 or done == 1:  # a sweep over many clips has hundreds of rows; they are in the CSV
            print_cells(heading, "clip, map", tables.clip_cells(result))
            heading = f"mean over {done} clips"
        else:
            heading += f"; mean over {done} clips"
        if done > 1:
            few = "; too narrow with so few clips" if done < ENOUGH_CLIPS else ""
            print_cells(f"{heading}, and 95 % intervals{few}", "map", tables.mean_cells(result))
            if result["differences"]:
                print_cells("how maps differ, on the same clips", "", tables.difference_cells(result))
        print_files([*tables.legend(result), *result["files"]])
    if result["unfinished"]:
        again = f"; the same command continues from {kept}" if kept else ""
        raise Interrupted(f"bd, after {len(result['clips'])} of {len(sources)} clips{again}")


def _sweep(options: EncoderOptions, strengths: str | None) -> "list[tuple[str, Shaping]]":
    """Every mapping with every strength. Raises UsageError for values that it does not take."""
    if strengths is not None and options.strength is not None:
        raise UsageError("--strength and --strengths exclude each other; give one")
    try:
        values = [float(text) for text in strengths.split(",")] if strengths else [options.strength]
    except ValueError:
        raise UsageError(f"--strengths {strengths}: must be numbers, as in 0.5,1,1.5") from None
    shapings = [
        (mapping, _shaping(replace(options, mapping=mapping, strength=strength)))
        for mapping in options.mapping.split(",")
        for strength in values
    ]
    if len(set(shapings)) < len(shapings):
        given = f"--mapping {options.mapping}" + (f" --strengths {strengths}" if strengths else "")
        raise UsageError(f"{given}: one of them is there twice")
    return shapings


def _shaping(options: EncoderOptions) -> "Shaping":
    """How maps become offsets. Raises UsageError for a mapping with values that it does not take."""
    from distill.encoding.planner import make_shaping

    return make_shaping(options.mapping, options.strength, options.prior, options.block, options.neutral)
