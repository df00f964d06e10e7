"""The page: what its templates are given, and the figures and images in it."""
