"""A run: its directory, its stages, and what every long piece of work shares."""
