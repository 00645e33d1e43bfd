"""What `make bench` runs: each module is one part, `python -m tests.benchmarks.NAME`. No test."""
