"""Where the labels of an archive's files stand."""
