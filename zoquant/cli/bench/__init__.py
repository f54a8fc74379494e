"""Speed and memory of training against inference of the same model, measured side by side in one run: `bench.run`."""
