"""Forward or backward: the same command on the same rows, one run after the other, each in a process of its own."""
