"""The parts of `benchmarks/chaos.py`: a campaign of random faults against the real product."""
