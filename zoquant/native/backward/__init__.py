"""The backward of native layers: to their input and to their fields, decoded a tile at a time and never kept."""
