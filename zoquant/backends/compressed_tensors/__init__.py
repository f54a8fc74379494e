"""Checkpoints of compressed-tensors, as llm-compressor writes them and vLLM reads them."""
