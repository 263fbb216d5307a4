"""Reading, checking, preparing and feeding scans and labels."""
