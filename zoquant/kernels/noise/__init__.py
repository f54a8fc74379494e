"""The definition of a direction, in torch, and the compiled code that draws the same bits."""
