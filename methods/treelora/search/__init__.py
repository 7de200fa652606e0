"""The search over the nodes of the tree by lower confidence bounds, and the baselines to compare it with."""
