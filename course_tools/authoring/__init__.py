"""Making the course: running, checking and rendering notebooks, pages, blog, animation, pre-training."""
