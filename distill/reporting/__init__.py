"""What a run tells its readers: report, model card, sidecar."""
