"""Sources of texts, their tokens, and the scores of answers; importing this package registers the sources."""

from benchmarks.texts import folder, hub  # noqa: F401
