"""Preparation of raw scans into a store: checks, resampling, worker processes and clusters."""
