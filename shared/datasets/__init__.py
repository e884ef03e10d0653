"""A decoded dataset as columns, and its faces: filtered, sorted, counted, exported."""
