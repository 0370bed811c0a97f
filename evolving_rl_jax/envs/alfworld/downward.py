"""Copies of the planner's C library (libdownward), each holding one loaded game.

The library keeps its game in global variables, so games that run side by side need a copy each.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import weakref
from collections import OrderedDict

__all__ = ["Library", "LibraryPool"]

_NAME_BYTES = 1024


class _Operator(ctypes.Structure):
    """Mirrors the struct of the library's interface."""

    _fields_ = [
        ("id", ctypes.c_int),
        ("name", ctypes.c_char * _NAME_BYTES),
        ("num_effects", ctypes.c_int),
    ]


class _Atom(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char * _NAME_BYTES)]


class Library:
    """One copy of the library; game states are numbers given out by the library."""

    _image: bytes | None = None
    _open_files: list[int] = []  # names of loaded copies must stay unique, so these are kept open

    def __init__(self):
        if Library._image is None:
            Library._image = _stripped_image()
        self._lib = _load(Library._image)
        for name, arguments, result in (
            ("load_sas", [ctypes.c_char_p], None),
            ("get_applicable_operators_count", [], ctypes.c_int),
            ("get_applicable_operators", [ctypes.POINTER(_Operator)], None),
            ("apply_operator", [ctypes.c_int, ctypes.POINTER(_Atom)], ctypes.c_int),
            ("check_goal", [], ctypes.c_bool),
            ("get_state_id", [], ctypes.c_int),
            ("set_state_id", [ctypes.c_int], None),
        ):
            function = getattr(self._lib, name)
            function.argtypes, function.restype = arguments, result

    def load(self, sas: bytes) -> int:
        """Replaces the loaded game; returns its initial state."""
        self._lib.load_sas(sas)
        return self._lib.get_state_id()

    def operators(self, state: int) -> list[tuple[int, str, int]]:
        """(number, name with arguments, number of effects) of what is applicable in ``state``."""
        self._lib.set_state_id(state)
        operators = (_Operator * self._lib.get_applicable_operators_count())()
        self._lib.get_applicable_operators(operators)
        return [(o.id, o.name.decode("cp1252"), o.num_effects) for o in operators]

    def apply(self, state: int, operator: int) -> int:
        """The state that an operator leads to."""
        self._lib.set_state_id(state)
        self._lib.apply_operator(operator, None)
        return self._lib.get_state_id()

    def effects(self, state: int, operator: int, count: int) -> list[str]:
        """The literals that an operator makes true, as the library lists them."""
        self._lib.set_state_id(state)
        atoms = (_Atom * count)()
        self._lib.apply_operator(operator, atoms)
        return [atom.name.decode("cp1252") for atom in atoms]

    def goal_reached(self, state: int) -> bool:
        """Whether the goal holds in ``state``."""
        self._lib.set_state_id(state)
        return self._lib.check_goal()


class LibraryPool:
    """Lends copies of the library to owners, the least recently used one changing hands.

    Owners are not kept alive.
    """

    def __init__(self, capacity: int):
        self._capacity = capacity
        self._lent: OrderedDict[weakref.ref, Library] = OrderedDict()

    def borrow(self, owner: object) -> tuple[Library, bool]:
        """A copy for ``owner`` and whether it still is the one that the owner had last time."""
        key = weakref.ref(owner)
        library = self._lent.get(key)
        if library is not None:
            self._lent.move_to_end(key)
            return library, True
        if len(self._lent) < self._capacity:
            library = Library()
        else:
            library = self._lent.popitem(last=False)[1]
        self._lent[key] = library
        return library, False


def _stripped_image() -> bytes:
    """The library's bytes without symbol tables (1 MB instead of 32) where ``strip`` exists."""
    import fast_downward.interface

    source = fast_downward.interface.DOWNWARD_LIB_PATH
    strip = shutil.which("strip")
    if strip:
        with tempfile.TemporaryDirectory() as folder:
            target = os.path.join(folder, "libdownward.so")
            command = [strip, "-o", target, source]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                with open(target, "rb") as f:
                    return f.read()
    with open(source, "rb") as f:
        return f.read()


def _load(image: bytes) -> ctypes.CDLL:
    """Loads a private copy of a shared library, without a file left behind."""
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("libdownward")
        with os.fdopen(os.dup(handle), "wb") as f:
            f.write(image)
        Library._open_files.append(handle)
        return ctypes.CDLL(f"/proc/self/fd/{handle}")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "libdownward.so")
        with open(path, "wb") as f:
            f.write(image)
        return ctypes.CDLL(path)
