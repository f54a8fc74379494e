"""Speed and memory of a user's own model: `zoquant bench`. Begin with `command`."""
