"""The child process: a line of JSON in (kind, path), a line out (exit code, what was printed)."""

import contextlib
import io
import json
import os
import sys
import warnings
from pathlib import Path

from distill.cli.exits import describe_error
from tests.damage.readers import read


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        kind, path = json.loads(line)
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            try:
                code = read(kind, Path(path))
            except Exception as error:
                message, code = describe_error(error)
                print(message)
        answers.write(json.dumps([code, text.getvalue()]) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
