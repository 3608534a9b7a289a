"""Data sets: what they hold, how they are read, made and downloaded."""
