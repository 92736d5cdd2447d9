"""The brief's fourth file: names for dataset adaptation, metrics, logging and checkpoints, in one place."""
