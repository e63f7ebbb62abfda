"""What a run is told to do: its keys, their defaults and bounds, and how they are read and written."""
