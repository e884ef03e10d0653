"""Images of faces: bytes to pixels, labels in names, and what is wrong with a file."""
