"""Run times beside those of other software, as ratios: ``python -m benchmarks [name ...]``."""
