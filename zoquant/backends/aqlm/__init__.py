"""AQLM: a sum of vectors from learned codebooks, times a scale a row."""
