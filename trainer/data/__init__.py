"""From an archive to a dataset: decoded, deduplicated, split."""
