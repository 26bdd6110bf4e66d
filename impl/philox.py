"""Philox 4x32-10, the counter-based generator behind every simulated loss.

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The generator has no state: a
(counter, key) pair names four 32-bit words, so any rank can recompute any draw, in any order, on any device.

Only `+ * & ^ >>` on 64-bit integers are used, so the one body below serves NumPy arrays and torch tensors alike and
agrees bit for bit between them (products that leave 63 bits wrap, and the shift is masked afterwards).
"""

from __future__ import annotations

from typing import Any

MASK_32 = 0xFFFFFFFF
_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10


def philox4x32(counter: tuple[Any, Any, Any, Any], key: tuple[int, int]) -> tuple[Any, Any, Any, Any]:
    """Four uniform 32-bit words for each counter, as 64-bit integers in [0, 2^32).

    Args:
        counter: four 64-bit integer arrays or tensors holding values in [0, 2^32), of broadcastable shapes;
            a plain int is allowed where at least one other component is an array.
        key: low and high 32 bits of the seed.

    >>> import numpy as np
    >>> zero = np.zeros(1, dtype=np.int64)
    >>> [hex(int(word[0])) for word in philox4x32((zero, zero, zero, zero), (0, 0))]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product_0, product_1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        high_0, low_0 = (product_0 >> 32) & MASK_32, product_0 & MASK_32
        high_1, low_1 = (product_1 >> 32) & MASK_32, product_1 & MASK_32
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, low_1, high_0 ^ c3 ^ k1, low_0
        k0, k1 = (k0 + _WEYL_0) & MASK_32, (k1 + _WEYL_1) & MASK_32
    return c0, c1, c2, c3


def split_seed(seed: int) -> tuple[int, int]:
    """The Philox key of a 64-bit seed; raises if it is not one."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an int, got {seed!r}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must lie in [0, 2^64), got {seed}")
    return seed & MASK_32, seed >> 32
