"""Where pictures come from: drawn pets, lists of labels, downloads that are checked."""
