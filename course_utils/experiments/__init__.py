"""Comparisons that the lessons make: strategies, families, domain shift, shortcuts, views of features."""
