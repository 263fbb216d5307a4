"""Reports of evaluated runs: tables with confidence intervals, figures, overlays and comparisons."""
