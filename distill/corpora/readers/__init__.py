"""Readers of single files: images, MATLAB matrices, tables of gaze, eye-tracker exports."""
