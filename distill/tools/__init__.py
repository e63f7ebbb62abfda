"""Tools for trained models, corpora and run directories: predict, bench, quantize, luma, inspect."""
