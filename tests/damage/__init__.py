"""Damaged files against every reader: each is read, or refused in a sentence with exit code 1 or 2; never a traceback or a crash.

`seeds` writes sound files of every kind, `readers` reads one of a kind as the pipeline does, `worker` is the child process in
which they run, `pool` damages, sends, and judges. Case N of a kind and seed is always the same file.
"""
