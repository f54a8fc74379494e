"""What a run leaves in its folder as it goes: its steps, or where it stands."""
