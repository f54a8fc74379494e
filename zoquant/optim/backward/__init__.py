"""Steps along the gradient, for whoever can afford a backward."""
