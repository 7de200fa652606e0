"""Streams of tasks, backbones, scores and metrics: everything that a method is measured with."""
