"""A corpus may have more clips than a process has file descriptors: no stage holds one open file per clip."""

import functools
import json
import resource

from tests.helpers import TINY, distill, gaze_corpus

LIMIT, CLIPS = 40, 88  # half of the clips train, half are held out: each half is more than the limit


def test_a_run_on_more_clips_than_file_descriptors(tmp_path):
    root = gaze_corpus(tmp_path / "set", images=CLIPS, observers=2)
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
    sets = [part for override in (*TINY, "corpus.val=0.5") for part in ("--set", override)]
    result = distill(
        "run", "--corpus", "gaze-table", "--root", root, "--out", tmp_path / "run", "--quiet", *sets, preexec_fn=limit
    )
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert len(metrics["clips"]) == CLIPS // 2 > LIMIT and metrics["predictors"]["teacher"]["nss"]
    assert (tmp_path / "run" / "report.html").is_file()
