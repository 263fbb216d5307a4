"""Reports of runs: tables with confidence intervals, figures, overlays and comparisons."""
