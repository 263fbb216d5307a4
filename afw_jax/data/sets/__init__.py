"""Data sets: organs, label ids, intensity windows, splits and folder layouts."""
