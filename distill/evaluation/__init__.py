"""Scores of saliency maps against gaze."""
