"""Marks of tests."""

import os

import pytest

SLOW = pytest.mark.skipif('AFW_SLOW' not in os.environ, reason='AFW_SLOW is not set (some minutes more)')
