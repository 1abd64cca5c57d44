"""Text that every machine with Python already has, split by subject.

Nothing is downloaded: the documents are the language reference that pydoc shows (prose) and the
sources of the standard library (code). They stand on one long shelf, ordered by subject, and
"builtin:I/N" is the I-th of N pieces of that shelf. So the shards of a mesh really differ (one
holds network protocols, another windows and drawing), every document is in exactly one shard, and
all shards are about equally long: where a cut falls near the end of a subject it moves there, and
the longest shard stays within twice the shortest.

The same Python version gives the same shards on every machine: what differs between builds of one
version (build settings, site packages, tests that some systems leave out) is not on the shelf.
"""

import os
import re
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from itertools import accumulate
from pathlib import Path

from shoal.training.documents import cut_into_pieces
from shoal.training.errors import TrainingError

SHARDS_MAX = 64
REFERENCE = "reference"
OTHER = "other"
# Which subject a module belongs to, by its top-level name. A module in no list is "other".
SUBJECTS = {
    REFERENCE: "__future__ pydoc pydoc_data this",
    "language": """
        _colorize _py_abc _pyrepl _sitebuiltins _weakrefset abc annotationlib ast bdb cProfile
        code codeop compileall contextlib contextvars copy copyreg dataclasses dis doctest enum
        functools importlib inspect keyword lib2to3 linecache modulefinder opcode operator pdb
        pkgutil profile pstats py_compile pyclbr rlcompleter runpy sre_compile sre_constants
        sre_parse symtable tabnanny timeit token tokenize trace traceback tracemalloc types
        typing unittest warnings weakref
    """,
    "numbers": """
        _collections_abc _pydatetime _pydecimal _strptime bisect calendar collections colorsys
        datetime decimal fractions graphlib heapq numbers random sched statistics struct
        zoneinfo
    """,
    "formats": """
        _compat_pickle _compression _markupbase aifc argparse base64 bz2 cgi chunk cmd codecs
        compression configparser csv dbm difflib fileinput getopt gettext gzip html imghdr json
        locale lzma mimetypes optparse pickle pickletools plistlib pprint quopri re reprlib
        shelve shlex sndhdr sqlite3 string stringprep sunau tarfile textwrap tomllib uu wave
        xdrlib xml zipapp zipfile zipimport
    """,
    "network": """
        asynchat asyncio asyncore cgitb email ftplib hashlib hmac http imaplib ipaddress mailbox
        mailcap netrc nntplib nturl2path poplib secrets selectors smtpd smtplib socket
        socketserver ssl telnetlib urllib uuid webbrowser wsgiref xmlrpc
    """,
    "system": """
        _aix_support _bootsubprocess _osx_support _pyio _threading_local concurrent crypt ctypes
        distutils ensurepip filecmp fnmatch genericpath getpass glob imp io logging
        multiprocessing ntpath os pathlib pipes platform posixpath pty queue shutil signal site
        stat subprocess sysconfig tempfile threading tty venv
    """,
    "windows": "curses idlelib tkinter turtle turtledemo",
}
# Directories and files that are not prose or code, or not the same in every build.
SKIPPED = re.compile(
    r"site-packages|dist-packages|test|tests|idle_test|encodings|lib-dynload|_bundled|topics"
    r"|__pycache__|__phello__|__hello__|antigravity|(config-|_sysconfig(data|_vars)).*"
    r"|(site|user)customize"
)


def builtin_documents(*, index: int, shards: int) -> list[str]:
    """Return the documents of shard `index` (from 0) of `shards`.

    Raises TrainingError for a shard that there is not and a Python without its library's sources.
    """
    if not 1 <= shards <= SHARDS_MAX or not 0 <= index < shards:
        raise TrainingError(
            f'"builtin:{index}/{shards}" is no shard; builtin:I/N has I from 0 to N-1 and '
            f"N from 1 to {SHARDS_MAX}"
        )
    shelf = _shelf()
    if not shelf:
        raise TrainingError(
            "this Python comes without the sources of its standard library, so there is no "
            "built-in text; point data at a file or directory of text"
        )
    cuts = _cuts(shelf, shards)
    return [text for _, text in shelf[cuts[index] : cuts[index + 1]]]


def named_documents() -> Iterator[tuple[str, str]]:
    """Yield (name, text) of every document on the shelf, whole and in no order."""
    yield from _reference_topics()
    yield from _library_sources()


def subject_of(name: str) -> str:
    """Return the subject of a document, from its name on the shelf ("email/parser.py")."""
    return _subject_by_module().get(name.split("/")[0].removesuffix(".py"), OTHER)


@cache
def _subject_by_module() -> dict[str, str]:
    return {module: subject for subject, names in SUBJECTS.items() for module in names.split()}


def _shelf() -> list[tuple[str, str]]:
    """Return (subject, text) of every document, subject by subject."""
    order = {subject: position for position, subject in enumerate([*SUBJECTS, OTHER])}
    named = sorted((order[subject_of(name)], name, text) for name, text in named_documents())
    return [
        (subject_of(name), piece) for _, name, text in named for piece in cut_into_pieces([text])
    ]


def _reference_topics() -> Iterator[tuple[str, str]]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # Some systems ship it in a package of its own.
        return
    for topic, text in topics.items():
        yield f"pydoc_data/topics/{topic}", text


def _library_sources() -> Iterator[tuple[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not SKIPPED.fullmatch(name)]
        for name in names:
            if not name.endswith(".py") or SKIPPED.fullmatch(name.removesuffix(".py")):
                continue
            path = Path(folder, name)
            with suppress(OSError, UnicodeDecodeError):
                yield path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")


def _cuts(shelf: list[tuple[str, str]], shards: int) -> list[int]:
    """Return where each shard begins on the shelf, and the shelf's length."""
    ends = list(accumulate(len(text) for _, text in shelf))
    total = ends[-1]
    subject_ends = [
        position + 1
        for position in range(len(shelf) - 1)
        if shelf[position][0] != shelf[position + 1][0]
    ]
    cuts = [0]
    for shard in range(1, shards):
        ideal = total * shard / shards
        # A sixth each way: from 2/3 to 4/3 of the mean, so within twice each other.
        near = [cut for cut in subject_ends if abs(ends[cut - 1] - ideal) <= total / shards / 6]
        candidates = near or range(1, len(shelf))
        cuts.append(min(candidates, key=lambda cut: abs(ends[cut - 1] - ideal)))
    return [*cuts, len(shelf)]
