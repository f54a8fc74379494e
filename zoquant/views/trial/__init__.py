"""The trial that `attach` makes of a layer, which the kit shares: do its values do what its backend says?"""
