"""Fingerprint of a data set: what its scans and label maps measure, and what stands out among them."""
