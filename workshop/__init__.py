"""Helpers for the course "Introduction to Production Machine Learning"."""
# Only the standard library, in words that an old Python can read: `python3 -m workshop` starts here.
import os

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # the checkout
# Import this package before scikit-learn and onnxruntime, or these two come too late.
os.environ["OMP_NUM_THREADS"] = "1"  # for a fit; more gain little here, and on busy cores it takes minutes
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # from 1.29 on, onnxruntime tells its maker of its use
# Servers on this machine are asked directly, also where programs are told to go out by a proxy.
near = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
if {"HTTP_PROXY", "ALL_PROXY"} & set(map(str.upper, os.environ)) and "127.0.0.1" not in near and near != "*":
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1,localhost," + near
