"""Interview questions, the quiz over them, and the study diary."""
