"""Decoding packed words and multiplying with what they hold, compiled for the CPU and in Triton."""
