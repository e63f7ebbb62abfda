"""Readers of single files: images, MATLAB matrices, tables of gaze, lists of points, eye-tracker exports."""
