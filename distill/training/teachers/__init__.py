"""How the teachers are trained: the tiny ViSAGE from scratch, the published one and UNISAL from their authors' weights."""
