"""From a trained student to the ONNX files that ship, verified, and the runtime for these files.

    student       both graphs of a student, verified: image mode and step mode; parity with PyTorch
    graph         the student's operations as ONNX nodes; `resolution`, the way into and out of its working resolution; `writer`,
                  nodes through onnxscript
    variants      planes or luma in, one frame size, block map out: `core` takes the student out of an image or step file for them,
                  `variant_parity` compares them with it; `quantize`, the same file in int8
    verification  the one check of every file: the gate with a contract, loading included, size, comparison
    runner        frames through a file, the state carried; `planes`, decoded planes; `streaming`, at a video's own frame rate, with cuts
    yuv           a decoded 4:2:0 frame: its planes, and how they stand for RGB
    cost          multiply-adds and parameters of a graph

`release_model()` is the path of the trained student that ships with this package.

Nothing here writes a file under its final name: callers do. Only `student` and `graph` need torch; the runner needs
onnxruntime alone, `planes` onnx too, `yuv` neither.
"""

from distill.students.release import release_model

__all__ = ["release_model"]
