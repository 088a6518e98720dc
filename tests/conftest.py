"""Tests run side by side, so each process keeps to one thread: threads that fight over cores are slow."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
