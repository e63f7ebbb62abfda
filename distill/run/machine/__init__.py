"""What this machine has: its devices and processes, its pipes, the packages that are installed, what is downloaded to it."""
