"""What zoquant costs beside inference and beside its peers, measured side by side in one run, and what was aimed at.

    python -m benchmarks.bench model.gguf --peers --derivatives --out benchmarks/results
    python -m benchmarks.bench model.gguf --quick           # whether it runs

Begin with `run`. `zoquant bench` is the short measure of a user's own model.
"""
