"""What a person types: the commands of `zoquant`.

A command reads its flags and calls one function of a wing below. Begin with `app`; nothing is handed on from here.
"""
