"""Training: the local loop, the generic model, the personal models."""
