"""The parts of benchmarks/gpu.py: what is measured, the processes that measure it, and the table of the results."""
