"""The downstream's own rules for a model and what lies beside it: its schema, its loader's parser, its three callers.

They are written down here a second time, from what the downstream was measured to do, and share no code with ours.
"""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort


def text(most):
    return lambda value: isinstance(value, str) and len(value) <= most


def matches(pattern, most=10_000):
    return lambda value: text(most)(value) and re.fullmatch(pattern, value) is not None


def one_of(*values):
    return lambda value: value in values


ENTRY = {
    "id": matches(r"[a-z0-9][a-z0-9_-]*", 64),
    "kind": one_of("fr", "nr", "filter"),
    "onnx": matches(r"[a-z0-9][a-z0-9_./-]*\.onnx", 256),
    "sha256": matches(r"[0-9a-f]{64}"),
    "opset": lambda value: type(value) is int and 7 <= value <= 21,
    "notes": text(512),
    "description": text(256),
    "license": text(128),
    "license_url": text(512),
    "quant_mode": one_of("fp32", "static", "dynamic", "qat"),
    "int8_sha256": matches(r"[0-9a-f]{64}"),
    "quant_calibration_set": text(256),
    "quant_accuracy_budget_plcc": lambda value: type(value) in (int, float) and 0 <= value <= 1,
    "sigstore_bundle": matches(r".*\.sigstore\.json", 256),
    "smoke": lambda value: type(value) is bool,
}


def strict_json(path):
    def refuse(word):
        raise AssertionError(f"{path} holds {word}, which is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def validate(registry: Path) -> dict:
    """Checks the schema and the downstream validator's rules for the files beside it; returns the entries by id."""
    content = strict_json(registry)
    assert set(content) == {"schema_version", "models"}
    registry_test(content)
    for entry in content["models"]:
        fits_schema(entry)
        assert ("int8_sha256" in entry) == (entry.get("quant_mode", "fp32") != "fp32")
        model = registry.parent / entry["onnx"]
        assert sha(model) == entry["sha256"]
        sidecar = model.with_suffix(".json")
        assert 0 < sidecar.stat().st_size <= 2**20
        assert c_reads(sidecar, "quant_mode") == entry["quant_mode"] and entry["kind"] == c_reads(sidecar, "kind") == "nr"
        assert int(c_reads(sidecar, "onnx_opset")) == entry["opset"] == onnx.load(model).opset_import[0].version
        if "int8_sha256" in entry:
            assert sha(model.with_suffix(".int8.onnx")) == entry["int8_sha256"]
    entries = {entry["id"]: entry for entry in content["models"]}
    assert len(entries) == len(content["models"])
    return entries


def fits_schema(entry: dict) -> None:
    assert {"id", "kind", "onnx", "sha256"} <= set(entry) <= set(ENTRY), set(entry) - set(ENTRY)
    for key, value in entry.items():
        assert ENTRY[key](value), f"{key}: {value!r}"


def registry_test(content: dict) -> None:
    """The downstream's test of its registry (`model_registry_schema_test.py`), which wants more than the schema does."""
    assert content["schema_version"] == 1
    for entry in content["models"]:
        assert "license" in entry, f"{entry['id']}: missing license"
        assert "sigstore_bundle" in entry, f"{entry['id']}: missing sigstore_bundle"
        assert entry["sigstore_bundle"].endswith(".sigstore.json")


def c_reads(sidecar: Path, key: str) -> str:
    """As the loader does: the first textual occurrence of the key, nested or not, and no escapes."""
    content = sidecar.read_text(encoding="utf-8")
    after = content[content.index(f'"{key}"') + len(key) + 2 :].lstrip().removeprefix(":").lstrip()
    return after[1:].split('"', 1)[0] if after.startswith('"') else re.match(r"[0-9]+", after)[0]


def c_opens(model: Path) -> Path:
    """The file that the loader opens for `model`."""
    sidecar = model.with_suffix(".json")
    if sidecar.exists() and c_reads(sidecar, "quant_mode") != "fp32":
        model = model.with_suffix(".int8.onnx")
    assert model.is_file()
    return model


def session_of(model):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def c_extractor(model, x):
    """`vmaf_ort_run`: by name, as many inputs and outputs as the session has, the default of an optional one not counted."""
    session = session_of(c_opens(model))
    assert [i.name for i in session.get_inputs()] == ["input"] and [o.name for o in session.get_outputs()] == ["saliency_map"]
    assert not session.get_overridable_initializers()
    [out] = session.run(["saliency_map"], {"input": x})
    assert out.size == x.shape[2] * x.shape[3]
    return out


def tuner(model, x):
    return session_of(model).run(None, {"input": x})[0].reshape(x.shape[2:])


def scorer(model, x):
    session = session_of(model)
    out = session.run([session.get_outputs()[0].name], {session.get_inputs()[0].name: x})[0]
    out = np.squeeze(out)
    assert out.shape == x.shape[2:] and np.isfinite(out).all()
    return out
