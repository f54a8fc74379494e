"""Ways to lay out codes and scales that several formats share; a layout of one format lies in its folder."""
