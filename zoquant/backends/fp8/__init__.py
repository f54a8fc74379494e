"""Checkpoints of float8 weights with scales beside them: DeepSeek's blocks, MXFP8, and FBGEMM's rows."""
