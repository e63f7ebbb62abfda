"""What is done with trained files."""
