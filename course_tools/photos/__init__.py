"""Your own photos: the ladder, training, prediction, explanation, and what they leave on the disk."""
