"""What makes ``fit`` exact and fast and is not the lesson: processes, loading, caches, checkpoints, the log of runs."""
