"""The tables and figures of the paper (--mode=paper): the runs that make them, and the scores of these."""
