"""Inference on whole volumes: slices or sliding windows, test-time augmentation, resampling to the grid of the scan."""
