"""The student's files in other runtimes than ONNX Runtime: the maps must be the same, frame after frame, the state fed back.

`test_runtimes.py` tries every file in every runtime that is installed; `benchmarks/runtimes.py` prints the table of
docs/runtimes.md, with times.
"""
