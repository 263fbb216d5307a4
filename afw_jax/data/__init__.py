"""Data: file formats, data sets, preparation of scans into a store, and training batches from it."""
