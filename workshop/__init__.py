"""Helpers for the course "Introduction to Production Machine Learning"."""
# Only the standard library, in words that an old Python can read: `python3 -m workshop` starts here.
import os

__version__ = "0.1.0"
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # the checkout
