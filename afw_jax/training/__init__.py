"""Training: the step, its optimizer and augmentation, gradient accumulation, checkpoints and metrics."""
