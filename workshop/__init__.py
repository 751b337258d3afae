"""Helpers for the course "Introduction to Production Machine Learning"."""
# Only the standard library, in words that an old Python can read: `python3 -m workshop` starts here.
import os

__version__ = "0.1.0"
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # the checkout
# These count only where scikit-learn and onnxruntime are not imported yet: import this package before them.
# One thread for each fit: more gain little here, and on busy cores, where they wait, it takes minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # from 1.29 on, onnxruntime tells its maker of its use
