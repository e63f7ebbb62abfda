"""From a trained student to the two ONNX files that ship, with the proof that they are what they claim.

`graph` writes the operators, `parity` compares them with PyTorch, `ship` lets a file get its name only after the gate and
parity passed, `runner` streams frames through a file. This module is torch-free; the runner needs only onnxruntime.
"""

from distill.export.errors import ExportRefused

__all__ = ["ExportRefused"]
