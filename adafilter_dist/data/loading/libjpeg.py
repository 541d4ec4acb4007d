"""The rows and columns of a JPEG that a crop needs, decoded by Pillow's own libjpeg-turbo.

Pillow decodes whole pictures. The library that it brings, or that the system has for it, can do
more: begin at any row, leave out columns, stop early. It is called here from code that numba
compiles, without Python's lock, and gives the pixels that Pillow gives.

libjpeg leaves by a long jump where it gives up. C code would call setjmp; here `adafilter_guarded`
does, a function of a few instructions that is made below.

Importing this module imports numba. LibraryMissing where there is no library that can be used.
"""

from __future__ import annotations

import ctypes
import platform
from typing import Any

import llvmlite.binding
import numba
import numpy as np
import PIL._imaging
from llvmlite import ir
from numba.core.types import int64
from numpy.typing import NDArray

from adafilter_dist.data.loading.compiling import compiled

# struct jpeg_decompress_struct on 64-bit machines: its size by version of the interface; the
# library compares both. What lies where is the same in all of them.
_SIZES = {62: 632, 80: 656}
_IMAGE_WIDTH, _IMAGE_HEIGHT, _OUT_COLOR_SPACE = 48 // 4, 52 // 4, 64 // 4
_RGB = 2
# struct jpeg_error_mgr: two function pointers.
_ERROR_EXIT, _OUTPUT_MESSAGE = 0, 16 // 8
# A decoder is one allocation: the struct, the error manager, what setjmp saves (312 bytes on ARM).
_ERRORS, _SAVED, _MEMORY = 1024, 1536, 2048
# Its words of 8 bytes: whether libjpeg gave up, and how often it warned, a field of the manager.
_FAILED, _WARNINGS = _ERRORS // 8 - 1, (_ERRORS + 128) // 8
# Its words of 4 bytes: first column and number of columns.
_REGION = _MEMORY // 4 - 2

MARGIN = 4
"""Columns decoded on each side of a crop: those at the edges are taken for a picture's edges."""


class LibraryMissing(Exception):
    """Why this machine's libjpeg cannot be used."""


def _library() -> tuple[ctypes.CDLL, int]:
    """Pillow's libjpeg, and the version of its interface."""
    if ctypes.sizeof(ctypes.c_void_p) != 8 or platform.system() != "Linux":
        raise LibraryMissing("not 64-bit Linux")
    # A symbol is looked for in the extension and in what it is linked with.
    library = ctypes.CDLL(PIL._imaging.__file__)
    try:
        library.jpeg_crop_scanline, library.jpeg_skip_scanlines  # noqa: B018
    except AttributeError:
        raise LibraryMissing("Pillow's libjpeg is not libjpeg-turbo") from None
    return library, _version(library)


def _version(library: ctypes.CDLL) -> int:
    """The one of `_SIZES` that the library accepts."""
    refused: list[int] = []
    complain = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(refused.append)
    memory = (ctypes.c_uint64 * (_MEMORY // 8))()
    at = ctypes.addressof(memory)
    for version, size in _SIZES.items():
        ctypes.memset(at, 0, _MEMORY)
        library.jpeg_std_error(ctypes.c_void_p(at + _ERRORS))
        memory[0] = at + _ERRORS
        memory[_ERRORS // 8 + _ERROR_EXIT] = ctypes.cast(complain, ctypes.c_void_p).value or 0
        refused.clear()
        library.jpeg_CreateDecompress(ctypes.c_void_p(at), version, ctypes.c_size_t(size))
        library.jpeg_destroy(ctypes.c_void_p(at))
        if not refused:
            return version
    raise LibraryMissing("Pillow's libjpeg has an interface of another version")


def _make_guards() -> Any:
    """Machine code that calls a function of libjpeg and returns -1 where it jumps out."""
    word, byte = ir.IntType(64), ir.IntType(8)
    pointer = byte.as_pointer()
    module = ir.Module("adafilter_guards")
    module.triple = llvmlite.binding.get_process_triple()
    set_jump = ir.Function(module, ir.FunctionType(ir.IntType(32), [pointer]), "_setjmp")
    set_jump.attributes.add("returns_twice")
    jump = ir.Function(module, ir.FunctionType(ir.VoidType(), [pointer, ir.IntType(32)]), "longjmp")
    jump.attributes.add("noreturn")

    # int64 guarded(function, struct, a, b): function(struct, a, b)
    called = ir.FunctionType(word, [word] * 3)
    guarded = ir.Function(module, ir.FunctionType(word, [word] * 4), "adafilter_guarded")
    guarded.attributes.add("noinline")
    function, struct, a, b = guarded.args
    builder = ir.IRBuilder(guarded.append_basic_block())
    saved = builder.inttoptr(builder.add(struct, word(_SAVED)), pointer)
    came_back = builder.icmp_signed("!=", builder.call(set_jump, [saved]), ir.IntType(32)(0))
    with builder.if_then(came_back):
        failed = builder.inttoptr(builder.add(struct, word(8 * _FAILED)), word.as_pointer())
        builder.store(word(1), failed)
        builder.ret(word(-1))
    builder.ret(builder.call(builder.inttoptr(function, called.as_pointer()), [struct, a, b]))

    # void give_up(struct), for error_exit
    give_up = ir.Function(module, ir.FunctionType(ir.VoidType(), [word]), "adafilter_give_up")
    builder = ir.IRBuilder(give_up.append_basic_block())
    saved = builder.inttoptr(builder.add(give_up.args[0], word(_SAVED)), pointer)
    builder.call(jump, [saved, ir.IntType(32)(1)])
    builder.unreachable()

    # void keep_quiet(struct), for output_message
    quiet = ir.Function(module, ir.FunctionType(ir.VoidType(), [word]), "adafilter_keep_quiet")
    ir.IRBuilder(quiet.append_basic_block()).ret_void()

    llvmlite.binding.initialize_native_target()
    llvmlite.binding.initialize_native_asmprinter()
    parsed = llvmlite.binding.parse_assembly(str(module))
    machine = llvmlite.binding.Target.from_default_triple().create_target_machine()
    engine = llvmlite.binding.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    for name in ("adafilter_guarded", "adafilter_give_up", "adafilter_keep_quiet"):
        llvmlite.binding.add_symbol(name, engine.get_function_address(name))
    return engine


# A table of what compiled code needs of the library: addresses differ from process to process, and
# compiled code is kept. First the interface's version and size, then these functions.
_FUNCTIONS = (
    *("jpeg_CreateDecompress", "jpeg_destroy", "jpeg_mem_src", "jpeg_read_header"),
    *("jpeg_start_decompress", "jpeg_crop_scanline", "jpeg_skip_scanlines", "jpeg_read_scanlines"),
    "jpeg_finish_decompress",
)
_CREATE, _DESTROY, _SOURCE, _HEADER, _START, _CROP, _SKIP, _READ, _FINISH = range(2, 11)
# Then an error manager, 168 bytes.
_MANAGER = 11


def _table() -> NDArray[np.int64]:
    library, version = _library()
    addresses = [ctypes.cast(getattr(library, n), ctypes.c_void_p).value or 0 for n in _FUNCTIONS]
    manager = (ctypes.c_int64 * 21)()
    library.jpeg_std_error(ctypes.byref(manager))
    manager[_ERROR_EXIT] = _guards.get_function_address("adafilter_give_up")
    manager[_OUTPUT_MESSAGE] = _guards.get_function_address("adafilter_keep_quiet")
    return np.array([version, _SIZES[version], *addresses, *manager], np.int64)


_guards = _make_guards()
_guarded = numba.types.ExternalFunction("adafilter_guarded", int64(int64, int64, int64, int64))
LIBRARY = _table()
"""The first argument of `open_decoder` and `decode_box`."""


@compiled
def open_decoder(library):  # type: ignore[no-untyped-def]
    """A decoder for many pictures, one after the other; `close_decoder` frees it."""
    decoder = np.zeros(_MEMORY // 8, np.int64)
    decoder[_ERRORS // 8 : _ERRORS // 8 + 21] = library[_MANAGER:]
    decoder[0] = int64(decoder.ctypes.data) + _ERRORS
    _guarded(library[_CREATE], int64(decoder.ctypes.data), library[0], library[1])
    return decoder


@compiled
def close_decoder(library, decoder):  # type: ignore[no-untyped-def]
    """Free what libjpeg has allocated."""
    _guarded(library[_DESTROY], int64(decoder.ctypes.data), 0, 0)


@compiled
def decode_box(library, decoder, encoded, height, width, box, pixels):  # type: ignore[no-untyped-def]
    """Decode top, left, height, width of a JPEG of height x width, and columns around it.

    Rows go to ``pixels`` (n,), without gaps. Returns (column of the box in them, pixels in a row),
    or (-1, 0) where the JPEG is damaged or of another size.
    """
    decoder[_FAILED], decoder[_WARNINGS] = 0, 0
    column, length = _start(library, decoder, encoded, height, width, box)
    if decoder[_FAILED] == 0 and column >= 0:
        rows = int64(pixels.ctypes.data) + 3 * length * np.arange(box[2])
        if box[0] > 0:
            _guarded(library[_SKIP], int64(decoder.ctypes.data), box[0], 0)
        _read(library, decoder, rows)
        if box[0] + box[2] == height and decoder[_FAILED] == 0:
            # What follows the last row is part of the picture, too.
            _guarded(library[_FINISH], int64(decoder.ctypes.data), 0, 0)
    failed = decoder[_FAILED] != 0 or decoder[_WARNINGS] != 0
    # Anew for each picture: it would use this one's tables where the next lacks its own.
    _guarded(library[_DESTROY], int64(decoder.ctypes.data), 0, 0)
    _guarded(library[_CREATE], int64(decoder.ctypes.data), library[0], library[1])
    return (-1, 0) if failed else (column, length)


@compiled
def _start(library, decoder, encoded, height, width, box):  # type: ignore[no-untyped-def]
    """Read the header and choose columns: (column of the box in them, pixels in a row)."""
    at = int64(decoder.ctypes.data)
    fields = decoder.view(np.uint32)
    _guarded(library[_SOURCE], at, int64(encoded.ctypes.data), encoded.size)
    _guarded(library[_HEADER], at, 1, 0)
    if fields[_IMAGE_HEIGHT] != height or fields[_IMAGE_WIDTH] != width:
        decoder[_FAILED] = 1
    if decoder[_FAILED] != 0:
        return -1, 0
    fields[_OUT_COLOR_SPACE] = _RGB
    _guarded(library[_START], at, 0, 0)
    first = max(0, box[1] - MARGIN)
    length = min(width, box[1] + box[3] + MARGIN) - first
    if decoder[_FAILED] == 0 and length < width:
        # The library moves the first column to a multiple of 8 or more, and writes both back.
        fields[_REGION], fields[_REGION + 1] = first, length
        region = at + 4 * _REGION
        _guarded(library[_CROP], at, region, region + 4)
        first, length = int64(fields[_REGION]), int64(fields[_REGION + 1])
    return box[1] - first, length


@compiled
def _read(library, decoder, rows):  # type: ignore[no-untyped-def]
    """Decode as many rows as there are addresses in ``rows``."""
    done = 0
    while done < len(rows) and decoder[_FAILED] == 0:
        left = len(rows) - done
        count = _guarded(
            library[_READ], int64(decoder.ctypes.data), int64(rows.ctypes.data) + 8 * done, left
        )
        done += count & 0xFFFFFFFF
        if count == 0:
            decoder[_FAILED] = 1
