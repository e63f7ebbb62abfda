"""Corpora: clips with eye-tracking ground truth. `open_corpus` finds and checks them, `split` divides them.

A corpus may have several parts, `dhf1k:1,images:0.5`, with a root folder for each. Its clips are then called PART.CLIP, and
`Corpus.weights` says how often training draws from each part.
"""

from distill.corpora.clips import Clip, Corpus
from distill.corpora.gaze import SIGMA, Points, blur, density_map, fixation_map, fixation_points
from distill.corpora.layouts import CORPORA, detect_corpus, recognise
from distill.corpora.opening import Part, find, open_corpus, parts_of, sources
from distill.corpora.splitting import split

__all__ = [
    "CORPORA", "SIGMA", "Clip", "Corpus", "Part", "Points", "blur", "density_map", "detect_corpus", "find", "fixation_map",
    "fixation_points", "open_corpus", "parts_of", "recognise", "sources", "split",
]  # fmt: skip
