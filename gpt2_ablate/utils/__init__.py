"""What every part of the package may use: files, processes, the machine."""
