"""Training of the student and of teachers."""
