"""Verbs about ONNX students: predict, demo, bench, quantize, and variants of their files."""

import shlex
import sys
import webbrowser
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from typer import Argument, Option

from distill.cli.options import SHIPPED, LayoutOption, ModelOption, Output, RootOption, RunOptions, SizesOption
from distill.cli.output import interruptible, print_files, print_json, print_scores, print_table, print_text, shipped
from distill.cli.which_run import corpus_recipe
from distill.opallowlist.foreign import printable
from distill.run.errors import Interrupted
from distill.run.machine import extras
from distill.run.progress import Narrator

SIZES = ["640x360", "1920x1080"]
PREDICT_OUT = "overlay video (.mp4, .avi), maps (.npy), or a folder of 8-bit PNGs; default VIDEO_saliency.mp4 in this folder"
RUNTIME = "unpacked npm package onnxruntime-web; default node_modules/onnxruntime-web in this folder"
VARIANT_OUT = "folder to write to; default the model's, or this folder for the student that ships"
BENCH_HEADS = ("median\nms", "p90\nms", "times\nfaster", "peak\nMiB", "of\nbase", "GMAC", "param-\neters", "of\nceiling")


def predict(
    *,
    video: Annotated[Path, Argument(metavar="VIDEO", help="a video file; - for standard input")],
    model: ModelOption = None,
    out: Annotated[Path | None, Option("--out", "-o", help=PREDICT_OUT)] = None,
    threads: Annotated[int, Option(help="CPU threads", min=1)] = 1, output: Output,
) -> None:  # fmt: skip
    """Run a student over a video: write an overlay to look at, or the maps themselves.

    [bold]distill predict clip.mp4[/bold] writes clip_saliency.mp4, an overlay, with the student that ships with this package.
    """
    from distill.tools.predict import write_predictions

    narrator = interruptible(output.quiet)
    out = out or Path("saliency.mp4" if str(video) == "-" else f"{video.stem}_saliency.mp4")
    written = write_predictions(video, model or shipped(narrator), out, threads, narrator)
    print_files([written], output.as_json)


def demo(
    *,
    model: ModelOption = None,
    port: Annotated[int, Option(help="port on 127.0.0.1; 0 is any free one", min=0, max=65535)] = 8765,
    open_browser: Annotated[bool, Option("--open", help="open the page in the browser, too")] = False,
    save: Annotated[Path | None, Option(metavar="DIR", help="write the page there, as files for any web server, and end")] = None,
    runtime: Annotated[Path | None, Option(metavar="DIR", help=RUNTIME)] = None,
    output: Output,
) -> None:  # fmt: skip
    """A page on this machine that runs a student in the browser: over a video file, the camera or a sample clip.

    It needs ONNX Runtime for the web: [bold]npm install onnxruntime-web[/bold] in this folder. No picture leaves the page.
    """
    from distill.tools.demo import page_files, page_server, save_page

    narrator = Narrator(output.quiet)
    files = page_files(model or shipped(narrator), runtime)
    if save:
        print_files(save_page(files, save), output.as_json)
        narrator.say(
            f"any web server serves it: python3 -m http.server -d {shlex.quote(str(save))}; opened as a file it does not run"
        )
        return
    with page_server(files, port) as server:
        url = f"http://localhost:{server.server_port}/"
        if output.as_json:
            print_json({"schema": 1, "url": url})
        else:
            print_text(url)
        sys.stdout.flush()  # now, not when the server ends
        narrator.say("Ctrl-C ends it")
        if open_browser:
            webbrowser.open(url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            raise Interrupted("the page is no longer served") from None


def bench(
    *,
    models: Annotated[list[Path] | None, Argument(metavar="MODEL", help=f"ONNX files; {SHIPPED}, both files")] = None,
    size: SizesOption = None,
    threads: Annotated[list[int] | None, Option(metavar="N", help="CPU threads; repeatable; default 1", min=1)] = None,
    rounds: Annotated[int, Option(help="timed frames of each model", min=1)] = 9,
    against: Annotated[Path | None, Option(metavar="MODEL", help="base of the ratios; default: the last")] = None,
    output: Output,
) -> None:
    """Compare models side by side, in alternating turns: time, peak memory, multiply-adds, share of the machine's ceiling.

    A model with state carries it. Anything else that runs on the machine lowers every number.
    """
    from distill.tools.bench import measure

    narrator = Narrator(output.quiet)
    models = models or [shipped(narrator, "image"), shipped(narrator, "step")]
    result = measure(models, size or SIZES, threads or [1], rounds, against, narrator)
    if output.as_json:
        print_json({"schema": 2, "rounds": rounds, **asdict(result)})
        return
    for ceiling in result.ceilings:
        for frame_size in dict.fromkeys(row.size for row in result.results):
            count = f"{ceiling.threads} thread{'s' * (ceiling.threads > 1)}"
            print_text(f"{frame_size}, {count}, {rounds} frames each, ratios to {result.against}")
            print_bench([row for row in result.results if (row.size, row.threads) == (frame_size, ceiling.threads)])
        print_text(f"ceiling: {ceiling.gmac_per_s:.1f} GMAC/s, {ceiling.of}, the best of the same turns")
    print_text("MiB: peak of a separate process, above onnxruntime and the frame")


def print_bench(rows: list[Any]) -> None:
    """The table of one frame size and thread count; fits 80 columns."""

    def short(value: float | None) -> str:
        return "-" if value is None else f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("model", overflow="fold")
    for head in BENCH_HEADS:
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        measured = map(short, (row.median_ms, row.p90_ms, row.speedup, row.peak_mib, row.memory_ratio))
        gmac = "-" if row.gmac is None else f"{row.gmac:.3f}"
        share = "-" if row.ceiling_fraction is None else f"{row.ceiling_fraction:.0%}"
        weights = "-" if row.parameters is None else f"{row.parameters / 1e3:,.0f} K"
        table.add_row(printable(row.model.removesuffix(".onnx")), *measured, gmac, weights, share)
    print_table(table)


def quantize(
    *,
    model: Annotated[Path, Argument(metavar="MODEL.onnx", help="ONNX student in floating point, step or image file")],
    corpus: LayoutOption = None, root: RootOption = None,
    out: Annotated[Path | None, Option("--out", "-o", metavar="DIR", help="folder for the package; default MODEL_int8")] = None,
    size: SizesOption = None,
    keep: Annotated[bool, Option("--keep", help="write it even if it is not faster, or its maps differ")] = False,
    output: Output,
) -> None:  # fmt: skip
    """Quantise a student to int8: ranges from clips of a corpus, loss measured on others; written only if it is faster.

    Writes a separate package: the model, the same model in int8, and a sidecar that makes the downstream open the latter.
    """
    extras.require("train")  # it rewrites graphs with onnx_ir, which only that extra has
    resolved = corpus_recipe([corpus] if corpus else [], RunOptions(root=root), Narrator(output.quiet))
    from distill.tools.quantize import quantise_file

    folder = out or model.with_name(f"{model.stem}_int8")
    result = quantise_file(model, folder, resolved, size or SIZES, keep, Narrator(output.quiet))
    if output.as_json:
        print_json({"schema": 1, **result})
        return
    for frame_size, time in result["times"].items():
        speeds = f"{time['float_ms']:.2f} ms in float, {time['int8_ms']:.2f} ms in int8, {time['speedup']:.2f} times as fast"
        print_text(f"{frame_size}, one thread: {speeds}, faster in {time['turns_won']:.0%} of the turns")
    drift = result["drift"]
    frames = f"{drift['frames']} frames of {len(result['held_out'])} held-out clips"
    gap = f"{drift['mean_abs']:.4f} in the mean and {drift['max_abs']:.3f} at most"
    print_text(f"maps differ by {gap}, and correlate by {drift['plcc']:.5f}, over {frames}")
    if result["scores"]:
        print_scores("held out", result["scores"], False)
    print_files(result["files"])


def variant(
    *,
    model: Annotated[Path | None, Argument(metavar="MODEL.onnx", help=f"step or image file of a run's export; {SHIPPED}")] = None,
    takes: Annotated[str, Option("--input", help="yuv420 (planes y, u, v), nv12 (y, uv), rgb, luma (from an image file)")] = "yuv420",
    size: Annotated[list[str] | None, Option(metavar="WxH", help="one frame size, fixed; repeatable; default any")] = None,
    gives: Annotated[str, Option("--output", help="map, or block-map: means of 16x16 px, for encoders")] = "map",
    matrix: Annotated[str, Option(help="of planes: bt601, bt709, bt2020")] = "bt709",
    range_: Annotated[str, Option("--range", help="of planes: limited, full")] = "limited",
    depth: Annotated[int, Option(help="bits of planes: 8 (uint8), 10 (uint16)")] = 8,
    out: Annotated[Path | None, Option("--out", "-o", metavar="DIR", help=VARIANT_OUT)] = None,
    output: Output,
) -> None:  # fmt: skip
    """A student for other inputs, one frame size or a block map; gated, and compared with the file that it is made from.

    [bold]distill variant STUDENT_step.onnx[/bold] writes STUDENT_step_yuv420_bt709.onnx: a decoder's planes in, no RGB needed.
    [bold]--input rgb --size 1920x1080[/bold]: a static graph, for OpenCV, TensorRT and other runtimes.
    """
    from distill.tools.variants import parse_variant

    _write_variants(model, parse_variant(takes, gives, matrix, range_, depth), size or [], out, output)


def luma(
    *,
    model: Annotated[Path | None, Argument(metavar="MODEL.onnx", help=f"image file of a run's export; {SHIPPED}")] = None,
    size: Annotated[list[str] | None, Option(metavar="WxH", help="the clip's size; repeatable: a file for each")] = None,
    out: Annotated[Path | None, Option("--out", "-o", metavar="DIR", help=VARIANT_OUT)] = None,
    output: Output,
) -> None:  # fmt: skip
    """A student for one frame size and luma only, for consumers that accept nothing else: variant --input luma.

    [bold]distill luma STUDENT.onnx --size 1920x1080[/bold] writes STUDENT_luma_1920x1080.onnx, its sidecar and registry entry.
    """
    from distill.export.variants import Variant

    _write_variants(model, Variant("luma"), size or [], out, output)


def _write_variants(model: Path | None, asked: Any, sizes: list[str], out: Path | None, output: Output) -> None:
    from distill.tools.variants import write_variants

    narrator = Narrator(output.quiet)
    if not model:
        model, out = shipped(narrator, "image" if asked.input == "luma" else "step"), out or Path()
    made = write_variants(model, asked, sizes, out, narrator)
    if output.as_json:
        print_json({"schema": 1, "made": made})
        return
    for entry in made:
        far = f"{entry['parity']['max_abs']:.1e} from the source file's maps at most"
        print_text(f"{entry['size'] or 'any size'}: {entry['bytes']:,} bytes, {far}")
        print_files(entry["files"])
