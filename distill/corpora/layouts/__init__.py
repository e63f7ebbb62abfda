"""How corpora lie on disk, one file per layout."""
