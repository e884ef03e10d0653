"""What lies in the store, as types: runs, jobs, models, datasets."""
