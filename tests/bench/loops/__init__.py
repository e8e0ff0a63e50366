"""The two training loops that `throughput.py` compares, and what both benches measure with."""
