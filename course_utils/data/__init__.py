"""Pictures and labels: drawn pets, folders and lists of your own, checked downloads, and splits."""
