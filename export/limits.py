"""What every ONNX file that ships keeps to; torch-free."""

OPSET, IR_VERSION = 17, 8  # the downstream's house opset; an IR that onnxruntime loads from 1.16 on
MAX_BYTES = 2_000_000
TOLERANCE = 1e-5  # maximum absolute difference of saliency maps, the downstream's own bound
