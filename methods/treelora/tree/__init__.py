"""The tree over the tasks' signatures: how it is grown, split, measured and stored."""
