"""How well models do: on groups of faces, at any threshold, beside one another, and on live traffic."""
