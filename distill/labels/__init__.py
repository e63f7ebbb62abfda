"""Teachers as a recipe names them, and the soft labels they write."""
