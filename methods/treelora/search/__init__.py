"""The search over the nodes of the tree by lower confidence bounds, and its rivals."""
