"""AES-256-GMAC tags of many datagrams in one call: OpenSSL's, with a loop of C around it.

A call of `cryptography` for each datagram costs three times what the tag itself does. The loop is compiled by the
system's C compiler when a process first needs it, kept in the user's cache, and works on the OpenSSL that Python's
own hashlib is linked to. Without compiler or OpenSSL, or with LOSSPROOF_COMPILE=0, `load` finds nothing, and
`cryptography` makes the same tags.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import os
import shlex
import subprocess
import tempfile
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NONCE_AT, _TAG_BYTES = 16, 16
_SOURCE = """
#include <stddef.h>
#include <stdint.h>

typedef int init_t(void *, const void *, void *, const unsigned char *, const unsigned char *);
typedef int update_t(void *, unsigned char *, int *, const unsigned char *, int);
typedef int final_t(void *, unsigned char *, int *);
typedef int ctrl_t(void *, int, int, void *);

/* How many tags were made. The nonce of a datagram is part of it; 0x10 is EVP_CTRL_AEAD_GET_TAG. */
int64_t tags(void *context, init_t *init, update_t *update, final_t *final, ctrl_t *ctrl, const unsigned char *bytes,
             const int64_t *start, const int64_t *stop, int64_t number, unsigned char *tag)
{
    unsigned char nothing[16];
    int length;
    for (int64_t k = 0; k < number; k++) {
        const unsigned char *at = bytes + start[k];
        if (init(context, NULL, NULL, NULL, at + NONCE_AT) != 1
            || update(context, NULL, &length, at, (int)(stop[k] - start[k])) != 1
            || final(context, nothing, &length) != 1
            || ctrl(context, 0x10, TAG_BYTES, tag + TAG_BYTES * k) != 1)
            return k;
    }
    return number;
}
"""
_FLAGS = ("-O2", "-shared", "-fPIC", f"-DNONCE_AT={_NONCE_AT}", f"-DTAG_BYTES={_TAG_BYTES}", "-x", "c", "-")

Tags = Callable[[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]], NDArray[np.uint64]]


def load(key: bytes) -> Tags | None:
    """The tags (D, 2), each as two words, of the bytes from each start to each stop, under a key of 32 bytes."""
    library, openssl = _library(), _openssl()
    if library is None or openssl is None:
        return None
    context = ctypes.c_void_p(openssl.EVP_CIPHER_CTX_new())
    if openssl.EVP_EncryptInit_ex(context, ctypes.c_void_p(openssl.EVP_aes_256_gcm()), None, key, None) != 1:
        return None
    steps = [
        ctypes.cast(getattr(openssl, name), ctypes.c_void_p)
        for name in ("EVP_EncryptInit_ex", "EVP_EncryptUpdate", "EVP_EncryptFinal_ex", "EVP_CIPHER_CTX_ctrl")
    ]

    def tags(bytes_B: NDArray[np.uint8], start_D: NDArray[np.int64], stop_D: NDArray[np.int64]) -> NDArray[np.uint64]:
        start_D, stop_D = (np.ascontiguousarray(of_D, np.int64) for of_D in (start_D, stop_D))
        if len(start_D) and not 0 <= start_D.min() <= stop_D.max() <= len(bytes_B):
            raise IndexError(f"start and stop must lie in {len(bytes_B)} bytes")
        found = np.empty((len(start_D), 2), np.uint64)
        places = (bytes_B.ctypes.data, start_D.ctypes.data, stop_D.ctypes.data)
        if library.tags(context, *steps, *places, len(start_D), found.ctypes.data) != len(start_D):
            raise RuntimeError("OpenSSL made no tag")
        return found

    weakref.finalize(tags, openssl.EVP_CIPHER_CTX_free, context)
    return tags


@cache
def _openssl() -> Any:
    try:
        import _hashlib
    except ImportError:  # a Python that was built without OpenSSL
        return None
    for name in (getattr(_hashlib, "__file__", None), ctypes.util.find_library("crypto")):
        try:
            library = ctypes.CDLL(name)
            library.EVP_CIPHER_CTX_new.restype = library.EVP_aes_256_gcm.restype = ctypes.c_void_p
            library.EVP_EncryptInit_ex.argtypes = [ctypes.c_void_p] * 5
        except (OSError, AttributeError):
            continue
        return library
    return None


def _ours(path: Path) -> bool:
    """Whether nobody else can have put it there or changed it: what is loaded runs with all rights of this user."""
    found = path.stat()
    return found.st_uid == os.geteuid() and not found.st_mode & 0o022


@cache
def _library() -> Any:
    if os.environ.get("LOSSPROOF_COMPILE") == "0":
        return None
    try:
        compiler = shlex.split(os.environ.get("CC") or "cc")
    except ValueError:  # quotes that nobody closes
        return None
    name = hashlib.sha256("\0".join([_SOURCE, *_FLAGS, *compiler, os.uname().machine]).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lossproof"
    path = folder / f"tags-{name}.so"
    try:
        if not path.exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as made:  # several ranks of a machine may do this at once
                new = Path(made) / "tags.so"
                subprocess.run([*compiler, *_FLAGS, "-o", str(new)], input=_SOURCE.encode(), check=True,
                               capture_output=True)  # fmt: skip
                new.chmod(0o700)
                new.replace(path)
        if not _ours(folder) or not _ours(path):
            return None
        library = ctypes.CDLL(str(path))
    except (OSError, RuntimeError, subprocess.CalledProcessError):
        return None
    library.tags.argtypes = [ctypes.c_void_p] * 8 + [ctypes.c_int64, ctypes.c_void_p]
    library.tags.restype = ctypes.c_int64
    return library
