"""zoquant's own plugins. Each is registered by an entry point, as anyone's package would be."""
