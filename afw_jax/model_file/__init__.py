"""Model files: the networks of one run or several in one zip, with a program that predicts without this package."""
