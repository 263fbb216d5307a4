"""Data sets: their organs, label ids, intensity windows, splits and folder layouts."""
