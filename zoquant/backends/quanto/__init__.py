"""optimum-quanto: weights of 8 bits, integer or float, and of 4 and 2 bits in groups."""
