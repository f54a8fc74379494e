"""What a run takes of memory: told before it begins, kept below a bound, and what it was."""
