"""What every ONNX file that ships keeps to, and the error of one that does not; torch-free."""

OPSET, IR_VERSION = 17, 8  # the downstream's house opset; an IR that onnxruntime loads from 1.16 on
MAX_BYTES = 2_000_000
TOLERANCE = 1e-5  # maximum absolute difference of saliency maps, the downstream's own bound


class ExportRefused(Exception):
    """The gate, the checker or parity refused a graph; nothing was written under its name."""
