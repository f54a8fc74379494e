"""Weights as they are: folders that are not quantized, and plain parameters of any module."""
