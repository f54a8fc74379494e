"""The experts of GPT-OSS in MXFP4."""
