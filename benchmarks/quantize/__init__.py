"""Real-size checkpoints, quantized on a CPU by the libraries themselves."""
