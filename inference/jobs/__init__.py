"""Batch jobs: an archive is opened into shards, shards become parts, parts the results."""
