"""Checkpoints for Apple's hardware, as transformers writes them with MLX's affine layout."""
