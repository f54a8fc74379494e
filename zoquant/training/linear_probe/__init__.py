"""Linear probing: the norm in front of the head is fitted to the last hidden states."""
