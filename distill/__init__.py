"""Distil heavyweight video-saliency teachers into a tiny recurrent ONNX student.

Importing this package does no work and imports no torch: the gate and `distill --help` must start at once.
"""

__version__ = "0.1.0"
