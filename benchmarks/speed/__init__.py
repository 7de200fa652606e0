"""The performance suite: every value is measured beside its reference in one run.

python -m benchmarks.speed [--only CASE] [--json FILE]
"""
