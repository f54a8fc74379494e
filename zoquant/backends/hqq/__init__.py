"""HQQ: `(code - zero) * scale` with a zero point in floating point, which is trained as scales are."""
