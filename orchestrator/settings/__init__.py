"""What an experiment is, and how its settings come together."""
