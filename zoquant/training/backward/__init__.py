"""A run whose steps follow the gradient."""
