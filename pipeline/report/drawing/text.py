"""Numbers as people read them."""

from __future__ import annotations

from typing import Any

from pipeline.report.statistics import Estimate

MINUS = "\N{MINUS SIGN}"
ABOUT = "\N{PLUS-MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
DASH = "\N{EN DASH}"
NARROW = "\N{NARROW NO-BREAK SPACE}"


def fixed(value: float, digits: int = 2) -> str:
    """Write a number with `digits` decimals."""
    return f"{value:.{digits}f}".replace("-", MINUS)


def signed(value: float, digits: int = 2) -> str:
    """Write a difference with its sign; what rounds to 0 has none."""
    # Rounded before the sign is chosen: "-0.00" would say that something was lost.
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return ("+" if value > 0 else MINUS) + text


def mean(value: Estimate, digits: int = 2) -> str:
    """Write a mean with its standard deviation."""
    if value.std is None:
        return fixed(value.mean, digits)
    return f"{fixed(value.mean, digits)} {ABOUT} {value.std:.{digits}f}"


def gain(value: Estimate, digits: int = 2) -> str:
    """Write a gain with half its interval, and the number of its seeds where some are missing."""
    if not value.count:
        return DASH
    shown = signed(value.mean, digits)
    if value.half is not None:
        shown += f" {ABOUT} {value.half:.{digits}f}"
    return f"{shown}, {seeds(value)}" if value.lacking else shown


def seeds(value: Estimate) -> str:
    """Write of how many seeds a mean is."""
    return f"{value.count} of {count(value.planned or value.count, 'seed')}"


def verdict(value: Estimate) -> str:
    """Write whether the interval of a gain excludes zero."""
    if value.half is None:
        return "one seed, no interval" if value.count else "no seed in common"
    return ("includes zero", "excludes zero", "below zero")[value.verdict]


def amount(value: float, unit: str = "") -> str:
    """Write a count in three digits, with k, M or G."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:  # what three digits would round up to the next letter
            return f"{_three(value / size)}{NARROW}{letter}{unit}"
    return f"{_three(value)}{NARROW + unit if unit else ''}"


def duration(seconds: float) -> str:
    """Write a time."""
    if seconds < 99.5:
        return f"{_three(seconds)} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def plain(value: Any) -> str:
    """Write a value of unknown kind."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", MINUS)
    return str(value)


def count(number: int, noun: str, plural: str = "") -> str:
    """Write a number and its noun."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def short(name: str, length: int = 26) -> str:
    """Cut a long name for a picture; its two ends stay."""
    if len(name) <= length:
        return name
    # Names of one grid of runs often differ at their ends.
    tail = length // 3
    return f"{name[: length - tail - 1]}\N{HORIZONTAL ELLIPSIS}{name[-tail:]}"


def _three(value: float) -> str:
    if value == int(value) and abs(value) < 1000:
        return str(int(value))
    if abs(value) < 1:
        return f"{value:.2g}"
    # Three digits in all: what stands before the point leaves fewer behind it.
    digits = max(0, 2 - len(str(int(abs(value)))) + 1)
    return f"{value:.{digits}f}"
