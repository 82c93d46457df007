"""One thread per process (small models gain nothing from two, and lose much if cores are shared), and no network."""

import gc
import os
import signal

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

# `nohup` and shells start commands in the background with these ignored, and tests send them
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

SLOW = (
    "training",
    "integration",
    "recipes",
    "benchmarks",
    "cli",
    "contracts",
    "examples",
    "test_docs.py",
    "test_episodes.py",
)
"""Folders and files whose tests train models or start processes: `make test-fast` leaves them out."""


def is_slow(item):
    return item.path.parent.name in SLOW or item.path.name in SLOW


def pytest_collection_modifyitems(items):
    for item in items:
        if is_slow(item):
            item.add_marker(pytest.mark.slow)
    items.sort(key=is_slow, reverse=True)  # long files first, so that both processes end together


def pytest_collection_finish():
    gc.freeze()  # accelerate collects garbage after every training, and need not go through what the imports made
