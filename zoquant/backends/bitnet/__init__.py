"""BitNet b1.58: ternary weights, four to a byte, and one scale a matrix."""
