"""Readers of single files: images, MATLAB files, tables."""
