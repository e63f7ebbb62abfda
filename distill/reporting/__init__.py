"""The documents of a run: report, model card, sidecar."""
