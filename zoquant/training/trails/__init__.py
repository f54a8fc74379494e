"""What a run leaves in its folder as it goes, so that it can go on to the same bytes: its steps, or where it stands."""
