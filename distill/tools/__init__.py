"""Tools for trained models, corpora and run directories: predict, demo, bench, quantize, luma, inspect."""
