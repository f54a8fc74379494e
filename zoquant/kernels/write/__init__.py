"""Writing theta into many views at once: the compiled code, for the CPU and in Triton."""
