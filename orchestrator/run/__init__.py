"""One worker's part of a run, the same in one process and on many; it imports neither Ray nor MLflow."""
