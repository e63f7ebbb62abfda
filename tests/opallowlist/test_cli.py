"""The command: exit codes, output, and that nothing but a verdict exits 1. `test_streams` closes and fills its streams."""

import json
import os
import pickle
import signal
import subprocess
import sys

import onnx
import pytest

from distill.opallowlist import NoVerdict, Unreadable, check, cli, formats, gate
from distill.opallowlist.reading import messages
from distill.opallowlist.rules.scan import scan

OPALLOWLIST = [sys.executable, "-m", "distill.opallowlist"]


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """The command in this process: (exit code, standard output, standard error). The working directory is `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(list(arguments))
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return command


@pytest.fixture
def good(tmp_path, image) -> str:
    onnx.save(image, tmp_path / "good.onnx")
    return "good.onnx"


@pytest.fixture
def bad(tmp_path, image) -> str:
    model = onnx.ModelProto.FromString(image.SerializeToString())
    model.graph.node[1].op_type = "Floor"
    onnx.save(model, tmp_path / "bad.onnx")
    return "bad.onnx"


def test_0_when_all_are_accepted(run, good):
    code, out, err = run("check", good)
    assert (code, err) == (0, "") and out.startswith("good.onnx: accepted")
    assert run("check", good, good)[1].endswith("2 files: 2 accepted, 0 refused\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "--nope"), ("check",), ("nope",), ("ops", "nope"),
        ("check", "m.onnx", "--list", "nope"), ("check", "m.onnx", "--contract", "nope"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("in_json", [["--json"], ["--format", "json"], ["--format=json"]])
def test_usage_errors_are_json_too(run, arguments, in_json):
    code, out, err = run(*arguments, *in_json)
    answer = json.loads(out)
    assert code == 2 and not answer["ok"] and answer["reports"] == [] and len(err.splitlines()) == 1
    assert err == f"opallowlist: {answer['errors'][0]['message']}\n"


def test_1_when_one_is_refused(run, good, bad):
    code, out, err = run("check", good, bad)
    assert (code, err) == (1, "") and "✗ Floor" in out and out.endswith("2 files: 1 accepted, 1 refused\n")


def test_2_when_one_cannot_be_read_and_the_others_are_still_judged(run, good, bad):
    code, out, err = run("check", good, "missing.onnx", bad)
    assert code == 2 and "good.onnx: accepted" in out and "bad.onnx: refused" in out and "1 not read" in out
    assert err == "opallowlist: missing.onnx: cannot be read (No such file or directory)\n"


def test_loading(run, good, bad, image, tmp_path, monkeypatch):
    image.graph.node[0].attribute.append(onnx.helper.make_attribute("strides", [1, 1, 1]))
    onnx.save(image, tmp_path / "unloadable.onnx")
    code, out, err = run("check", "--load", good, bad, "unloadable.onnx")
    assert (code, err) == (1, "") and f" · loaded by onnx.checker {onnx.__version__}, ONNX Runtime " in out
    assert "✗ load  onnx.checker" in out and out.endswith("3 files: 1 accepted, 2 refused\n")
    reports = json.loads(run("check", "--load", "--json", good, bad)[1])["reports"]
    assert [len(report["facts"]["loaded_by"]) for report in reports] == [2, 0]
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, out, err = run("check", "--load", good)
    assert (code, out) == (2, "") and err == "opallowlist: --load needs onnx, which is not installed; pip install onnx\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_2_when_permission_is_denied(run, good, tmp_path):
    (tmp_path / good).chmod(0)
    assert run("check", good)[0] == 2


def test_refused_without_being_a_model(run, tmp_path):
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "lfs.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (tmp_path / "page.onnx").write_text("\n<!DOCTYPE html><html><body>Sign in</body></html>")
    (tmp_path / "notes.onnx").write_text("to do: export the model\n")
    (tmp_path / "weights.onnx").write_bytes(b"PK\x03\x04" + bytes(30))
    (tmp_path / "old.onnx").write_bytes(b"\x80\x02}q\x00.")
    (tmp_path / "new.onnx").write_bytes(pickle.dumps({"model": 1}))
    (tmp_path / "folder.onnx").mkdir()
    os.mkfifo(tmp_path / "pipe.onnx")
    names = ["empty", "lfs", "page", "notes", "weights", "old", "new", "folder", "pipe"]
    code, out, err = run("check", *(f"{name}.onnx" for name in names), "/dev/zero")
    assert (code, err) == (1, "")
    assert out.count("not an ONNX model but a pickle") == 2
    for words in (
        "✗ empty  empty, 0 bytes",
        "✗ git-lfs-pointer  a git-lfs pointer",
        "try: git lfs pull",
        "not an ONNX model but an HTML page",
        "not an ONNX model but a text file",
        "not an ONNX model but a zip archive",
        "not an ONNX model but a pickle",
        "✗ directory  a directory",
        "✗ not-a-file  a pipe, socket or device",
        "10 files: 0 accepted, 10 refused",
    ):
        assert words in out, words


def test_max_bytes(run, good, tmp_path):
    size = (tmp_path / good).stat().st_size
    assert run("check", good, "--max-bytes", str(size))[0] == 0
    code, out, _ = run("check", good, "--max-bytes", str(size - 1))
    assert code == 1 and f"{size} bytes; at most {size - 1} are loaded" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check"], "Missing argument"),
        (["check", "good.onnx", "--max-bytes", "0"], "--max-bytes"),
        (["check", "good.onnx", "--max-bytes", "many"], "--max-bytes"),
        (["check", "good.onnx", "--format", "xml"], "--format"),
        (["check", "good.onnx", "--frmat", "text"], "--frmat"),
        (["check", "good.onnx", "--list", "libvmf"], "did you mean 'libvmaf'?"),
        (["check", "good.onnx", "--list", "good.onnx"], "not text"),
        (["check", "good.onnx", "--contract", "saliency-stp"], "did you mean 'saliency-step'?"),
        (["chek", "good.onnx"], "check"),
        (["ops", "nothing"], "built in: libvmaf"),
        (["diff", "libvmaf"], "Missing argument"),
        (["diff", "libvmaf", "nothing"], "built in: libvmaf"),
    ],
)
def test_2_for_wrong_usage_in_one_line(run, good, arguments, message):
    code, out, err = run(*arguments)
    assert code == 2 and out == ""
    assert err.startswith("opallowlist: ") and message in err and err.count("\n") == 1


def test_no_arguments_show_the_help_and_are_2(run):
    code, out, err = run()
    assert code == 2 and "diff" in out and err == ""
    assert run("--help")[0] == 0 and run("check", "--help")[0] == 0


def test_an_error_for_one_file_is_2_and_the_others_are_judged(run, good, bad, monkeypatch):
    def broken(model: messages.Model, *rest: object) -> object:
        if model.graph.node[1].op_type == "Floor":
            raise error
        return scan(model, *rest)

    monkeypatch.setattr(gate, "scan", broken)
    for raised, reason in (
        (RecursionError("how?"), "internal error: RecursionError: how?"),
        (KeyError("how?"), "internal error: KeyError: 'how?'"),
        (MemoryError(), "not enough memory to check it"),
    ):
        error = raised
        message = f"bad.onnx: {reason}"
        for form in ("text", "json", "sarif", "github"):
            code, out, err = run("check", good, bad, good, "--format", form)
            assert (code, err) == (2, f"opallowlist: {message}\n")
            assert form == "text" or message in out.replace("%3A", ":").replace("\\", "")
        result = json.loads(run("check", good, bad, good, "--json")[1])
        assert [report["ok"] for report in result["reports"]] == [True, True]
        assert result["errors"] == [{"source": "bad.onnx", "message": message}] and not result["ok"]
        with pytest.raises(NoVerdict, match=reason.split(":")[0]):
            check(bad)
    code, _, err = run("--debug", "check", bad)
    assert code == 2 and "Traceback" in err and "in broken\n    raise error" in err


def test_an_error_elsewhere_is_2_and_one_line_unless_debugging(run, good, monkeypatch):
    def broken(*_: object) -> None:
        raise RecursionError("how?")

    monkeypatch.setattr(formats, "text", broken)
    assert run("check", good) == (2, "", "opallowlist: internal error: RecursionError: how? (--debug shows where)\n")
    code, _, err = run("--debug", "check", good)
    assert code == 2 and "Traceback" in err and 'in broken\n    raise RecursionError("how?")' in err


def test_a_file_that_vanishes_while_read_is_2(run, good, monkeypatch):
    def vanished(*_: object, **__: object) -> None:
        raise Unreadable("good.onnx: cannot be read (Input/output error)")

    monkeypatch.setattr(cli, "check_model", vanished)
    assert run("check", good)[::2] == (2, "opallowlist: good.onnx: cannot be read (Input/output error)\n")


def test_ctrl_c_is_130(run, good, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "check_model", interrupted)
    assert run("check", good)[0] == 130


def test_a_real_interrupt_is_130(tmp_path, good):
    script = "import os, signal, distill.opallowlist.cli as c\n"
    # A job in the background starts with it ignored.
    script += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    script += f"c.check_model = lambda *a, **k: os.kill(os.getpid(), {int(signal.SIGINT)})\nc.main()"
    result = subprocess.run([sys.executable, "-c", script, "check", good], cwd=tmp_path, capture_output=True, check=False)
    assert result.returncode == 130 and result.stderr == b""


def test_all_formats_have_the_same_exit_codes(run, good, bad):
    for form in ("text", "json", "sarif", "github"):
        assert run("check", good, "--format", form)[0] == 0
        assert run("check", bad, "--format", form)[0] == 1
        assert run("check", bad, "none.onnx", "--format", form)[0] == 2
    assert json.loads(run("check", bad, "--json")[1]) == json.loads(run("check", bad, "--format", "json")[1])
    assert json.loads(run("check", bad, "--format", "sarif")[1])["version"] == "2.1.0"
    assert run("check", bad, "--format", "github")[1].startswith("::error file=bad.onnx,title=opallowlist%3A op Floor::")


def test_quiet_shows_only_refused_models(run, good, bad):
    assert run("check", good, "-q") == (0, "", "")
    assert run("check", good, good, "-q") == (0, "", "")
    assert "good.onnx" not in run("check", good, bad, "--quiet")[1]


def test_contracts_and_lists_reach_the_check(run, good, tmp_path):
    assert run("check", good, "--contract", "saliency")[0] == 0
    assert run("check", good, "--contract", "saliency-step")[0] == 1
    (tmp_path / "allowlist.c").write_text('const char *ops[] = {"Conv", 0};')
    code, out, _ = run("check", good, "--list", "allowlist.c")
    assert code == 1 and "✗ Sigmoid" in out and "list allowlist.c (1)" in out


def test_ops(run, tmp_path):
    code, out, _ = run("ops")
    assert code == 0 and len(out.splitlines()) == 70 and out.startswith("Abs\nAdd\n")
    (tmp_path / "ops.txt").write_text(out)
    assert run("ops", "ops.txt")[1] == out
    assert json.loads(run("ops", "--json")[1])["ops"] == out.split()


def test_diff(run, tmp_path):
    (tmp_path / "mine.txt").write_text(run("ops")[1].replace("Loop\n", "Scan\n"))
    assert run("diff", "libvmaf", "libvmaf") == (0, "", "")
    assert run("diff", "libvmaf", "mine.txt") == (1, "- Loop\n+ Scan\n", "")
    got = json.loads(run("diff", "mine.txt", "libvmaf", "--json")[1])
    assert (got["only_a"], got["only_b"]) == (["Scan"], ["Loop"])


def test_version(run):
    code, out, _ = run("--version")
    assert code == 0 and out.startswith("opallowlist ")


def test_a_narrow_encoding_does_not_break_the_report(tmp_path, bad):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run([*OPALLOWLIST, "check", bad], cwd=tmp_path, capture_output=True, env=environment, check=False)
    assert result.returncode == 1 and b"? Floor" in result.stdout and result.stderr == b""


def test_names_that_are_not_utf8(tmp_path, image):
    name = os.fsdecode(b"b\xe4d.onnx")
    image.graph.node[1].op_type = "Floor"
    (tmp_path / name).write_bytes(image.SerializeToString())
    for form in ("text", "json", "sarif", "github"):
        command = [*OPALLOWLIST, "check", name, "--format", form]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
        assert (result.returncode, result.stderr) == (1, b""), form


def test_colour_only_on_a_terminal(monkeypatch, bad, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit):
        cli.main(["check", bad])
    coloured = capsys.readouterr().out
    assert coloured.startswith("\x1b[31mbad.onnx: refused") and "\x1b[0m" in coloured
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    with pytest.raises(SystemExit):
        cli.main(["check", bad])
    assert "\x1b" not in capsys.readouterr().out
