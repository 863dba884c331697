"""Step 1 of the tutorial: CIFAR-10 — fetch it, verify it, read it, split it, look at it.

    python data.py                  fetch the official archive (170 MB, once), print shapes, draw samples
    python data.py --data PATH      the same from an archive or a folder that is already here
    python data.py --data sample    the same from the small slice that comes with the code

The last lines on the screen, for the full data set:

    x_train (45000, 32, 32, 3) uint8    y_train (45000,) int64
    x_val   (5000, 32, 32, 3) uint8     y_val   (5000,) int64
    x_test  (10000, 32, 32, 3) uint8    y_test  (10000,) int64
    Eight images of each class: figures/samples.png

CIFAR-10 is 60,000 colour images of 32×32 pixels in ten classes, 6,000 of each; 50,000 are for training and 10,000
for testing. Alex Krizhevsky, Vinod Nair and Geoffrey Hinton collected and labelled them as a subset of the 80 Million
Tiny Images. Source: https://www.cs.toronto.edu/~kriz/cifar.html

Different from the tutorial: it called pickle.load on a file from the internet, which runs whatever program the file
contains. Here a file is a suspect until every instruction in it has been looked at.

On a first reading go on to "Loading and splitting"; of what stands before it, only the end of _parse_batch belongs to
the tutorial. The rest guards against damaged and hostile files.

Shapes: N images, H = W = 32 pixels, C = 3 channels (red, green, blue).
"""

import argparse
import bz2
import gzip
import hashlib
import io
import lzma
import os
import pickle
import pickletools
import socket
import tarfile
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import NamedTuple

# Both must be set before the first import of Keras. TensorFlow talks a lot while it starts; 2 leaves only its errors.
# And it uses the fast convolutions of Intel's oneDNN library only on the newest processors; they help older ones too.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras
import numpy as np
from matplotlib.figure import Figure  # not pyplot: works without a screen and leaves no global state behind

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"

FOLDER = "cifar-10-batches-py"
TRAIN_FILES = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST_FILE = "test_batch"
META_FILE = "batches.meta"  # the names of the classes; checked when it is there, but not needed
ALL_FILES = (*TRAIN_FILES, TEST_FILE, META_FILE)

OFFICIAL_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}

# The sample: of each training batch the first 30 images of every class, of the test batch the first 50, class by turn.
SAMPLE = Path(__file__).with_name("cifar-10-sample.tar.gz")
SAMPLE_TEST_MD5 = "85dab360b21e61bafe03ffd59da4512c"  # of its test batch: tells the sample wherever it lies

IMAGE_SHAPE = (32, 32, 3)
IMAGE_BYTES = 32 * 32 * 3
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class DataError(ValueError):
    """The data cannot be had, or are not CIFAR-10. The message is one line for a person to act on."""


class Cifar10(NamedTuple):
    """The three splits. Images: uint8 (N, 32, 32, 3), 0…255, RGB. Labels: int64 (N,), 0…9."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


# ---------------------------------------------------------------- Reading a batch file
#
# A batch file is a pickle, and a pickle is a program for a small stack machine: it can import any function of Python
# and call it. CIFAR-10's files need very little of that machine. So the program is first listed without being run
# (pickletools.genops). Any instruction or import that the official files do not use is refused, as are numbers of
# them that no batch of images needs: a program that short cannot ask for gigabytes or for hours. Even the three
# imports that are allowed (one has two names) never reach NumPy: a stand-in takes their place, which only keeps what it
# is given.

MAX_FILE_BYTES = 64 * 2**20  # twice an official batch file
MAX_IMAGES = MAX_FILE_BYTES // IMAGE_BYTES

_VALUE_OPCODES = "BININT BININT1 BININT2 SHORT_BINSTRING BINSTRING BINPUT LONG_BINPUT"  # a few for every image
_STRUCTURE_OPCODES = (  # a few for every file, or for every thousand images
    "PROTO STOP GLOBAL REDUCE BUILD NONE NEWFALSE MARK EMPTY_DICT SETITEMS EMPTY_LIST APPENDS"
    " TUPLE TUPLE1 TUPLE2 TUPLE3"
)
OPCODE_LIMITS = dict.fromkeys(_VALUE_OPCODES.split(), 2 * MAX_IMAGES) | dict.fromkeys(_STRUCTURE_OPCODES.split(), 64)
ALLOWED_GLOBALS = {  # as pickletools writes them: module, space, name
    "numpy.core.multiarray _reconstruct",
    "numpy._core.multiarray _reconstruct",  # the same since NumPy 2
    "numpy ndarray",
    "numpy dtype",
}


class _Recorded:
    """Stands in for NumPy's functions while a pickle is read: keeps what it is given and does nothing with it."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __setstate__(self, state):
        self.state = state


class _RecordingUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if f"{module} {name}" not in ALLOWED_GLOBALS:  # already refused by _check_opcodes; a lock has two bolts
            raise DataError(f"it asks for {module}.{name}")
        return _Recorded


def _check_opcodes(raw):
    """Raise DataError unless the pickle `raw` uses only instructions and imports that CIFAR-10's files use."""
    counts = Counter()
    for opcode, argument, _ in pickletools.genops(raw):
        counts[opcode.name] += 1
        if opcode.name == "GLOBAL" and argument not in ALLOWED_GLOBALS:
            raise DataError(f"it asks for {argument.replace(' ', '.')[:80]!r}, which CIFAR-10's files never do")
        if opcode.name not in OPCODE_LIMITS:
            raise DataError(f"it uses the pickle instruction {opcode.name}, which CIFAR-10's files never do")
        if counts[opcode.name] > OPCODE_LIMITS[opcode.name]:
            raise DataError(f"it uses the pickle instruction {opcode.name} more often than any batch of images needs")
        if opcode.name == "LONG_BINPUT" and argument > 4 * MAX_IMAGES:  # an index into a table that would be allocated
            raise DataError(f"it asks for a memo of {argument} entries, more than any batch of images needs")


def _unpickle(raw, name):
    """Return the dictionary in the pickle `raw` (bytes); keys and strings are bytes, arrays are _Recorded."""
    try:
        _check_opcodes(raw)
        content = _RecordingUnpickler(io.BytesIO(raw), encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{name} is refused: {error}") from None
    except Exception as error:  # a damaged pickle can fail in any way; to the user it is always the same
        raise DataError(f"{name} is damaged: not a complete pickle ({str(error)[:80]})") from None
    if not isinstance(content, dict):
        raise DataError(f"{name} is not a CIFAR-10 file: a dictionary was expected, found {type(content).__name__}")
    return content


def _parse_batch(raw, name):
    """Return images uint8 (N, 32, 32, 3) and labels int64 (N,) of one batch file, given as bytes."""
    batch = _unpickle(raw, name)
    # What pickle.loads would have passed to NumPy: version, shape, dtype, Fortran order or not, and the bytes.
    match getattr(batch.get(b"data"), "state", None):
        case (1, (int(count), 3072), _Recorded(arguments=(b"u1", 0, 1)), False, bytes(pixels)):
            if len(pixels) != count * IMAGE_BYTES:
                needed = count * IMAGE_BYTES
                raise DataError(f"{name} is damaged: {count} images need {needed} bytes, not {len(pixels)}")
        case _:
            raise DataError(f"{name} is misshapen: its data are not an array of bytes of shape (N, {IMAGE_BYTES})")

    labels = batch.get(b"labels")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{name} is misshapen: its labels are not a list of whole numbers")
    if len(labels) != count:
        raise DataError(f"{name} is misshapen: {count} images, but {len(labels)} labels")
    if wrong := [label for label in labels if not 0 <= label <= 9]:
        raise DataError(f"{name} has the label {wrong[0]}; CIFAR-10's labels are 0 to 9")

    # A row holds one image plane by plane: 1024 red, 1024 green, 1024 blue bytes, each plane row by row.
    # (N, 3072) -> (N, C, H, W) -> (N, H, W, C). Get this wrong and the pictures show it at once, so we look at them.
    images = np.frombuffer(pixels, np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.array(labels, np.int64)


def _check_meta(raw):
    names = _unpickle(raw, META_FILE).get(b"label_names")
    if names != [name.encode() for name in CLASS_NAMES]:
        raise DataError(f"{META_FILE} names other classes than CIFAR-10's {', '.join(CLASS_NAMES)}")


# ---------------------------------------------------------------- Opening a source
#
# _files_in_folder and _files_in_archive yield (file name, content). Nothing is ever written to disk, so no path in an
# archive can do harm; and nothing is read beyond the size it could plausibly have.

MAX_ARCHIVE_BYTES = len(ALL_FILES) * MAX_FILE_BYTES // 2
MAX_HEADERS_BYTES = 128 * 2**10  # of all files in an archive together; tarfile keeps what it finds in headers
MAX_EXTENSION_BYTES = 4 * 2**10  # of one header that extends another, for a long name or a time with fractions


def _files_in_folder(folder):
    inner = folder / FOLDER
    folder = inner if inner.is_dir() else folder
    for name in ALL_FILES:
        path = folder / name
        if not path.is_file():
            continue  # load_cifar10 says which files are missing
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{path} is refused: {path.stat().st_size} bytes are too many for a CIFAR-10 file")
        yield name, path.read_bytes()


class _LimitedReader:
    """Reads from `file` until `left` bytes are used up: a small archive can unpack to gigabytes."""

    def __init__(self, file, left):
        self.file, self.left = file, left

    def read(self, size):
        block = self.file.read(size)
        self.left -= len(block)
        if self.left < 0:
            raise DataError("it unpacks to more than CIFAR-10 could")
        return block


class _LimitedHeader(tarfile.TarInfo):
    """The header of a member. tarfile reads a header that extends another into memory whole, whatever its size."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        header = super().frombuf(buf, encoding, errors)
        if not (header.isreg() or header.isdir()) and header.size > MAX_EXTENSION_BYTES:
            raise DataError(f"{header.name[:80]!r} is not a plain file, or has a header of {header.size} bytes")
        return header


def _decompressed(path):
    """Open `path` for reading its decompressed bytes, whatever it was compressed with."""
    with open(path, "rb") as file:
        start = file.read(6)
    for magic, opener in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open)):
        if start.startswith(magic):
            return opener(path, "rb")
    return open(path, "rb")


def _files_in_archive(path):
    try:
        # "r|" reads a tar file in one pass from front to back: seeking in a compressed file would mean starting again.
        with _decompressed(path) as file:
            reader = _LimitedReader(file, MAX_HEADERS_BYTES)
            with tarfile.open(fileobj=reader, mode="r|", tarinfo=_LimitedHeader) as archive:
                seen, left = set(), MAX_ARCHIVE_BYTES
                for position, member in enumerate(archive):
                    inside = PurePosixPath(member.name)
                    plain = (member.isreg() or member.isdir()) and not member.issparse()
                    if inside.is_absolute() or ".." in inside.parts or not plain:
                        raise DataError(f"{member.name[:80]!r} is not a plain file inside it")
                    left -= member.size
                    if not 0 <= member.size <= MAX_FILE_BYTES or left < 0 or position >= 100:
                        raise DataError(f"{member.name[:80]!r} is too large, or one file too many, for CIFAR-10")
                    reader.left += member.size
                    if not member.isreg() or inside.name not in ALL_FILES:
                        continue
                    if inside.name in seen:
                        raise DataError(f"it holds {inside.name} twice")
                    seen.add(inside.name)
                    yield inside.name, archive.extractfile(member).read()
            # tarfile stops at the end mark; the checksum of a compressed file comes after it, and tells of any damage.
            reader.left += MAX_FILE_BYTES
            while reader.read(2**16):
                pass
    except DataError as error:
        raise DataError(f"{path} is refused: {error}") from None
    except Exception as error:  # four libraries read hostile bytes here, each with exceptions of its own
        reason = str(error)[:80] or type(error).__name__
        raise DataError(f"{path} is not a readable tar archive, or breaks off early ({reason})") from None


def _download():
    """Return the path of the official archive in Keras's cache (~/.keras/datasets), fetched if it is not there."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(60)  # without it a connection that has gone silent would be waited for for ever
    try:
        # get_file checks the hash of a cached file too, so that half a download is never taken for a whole one.
        return Path(keras.utils.get_file(origin=URL, file_hash=SHA256, hash_algorithm="sha256"))
    except Exception as error:  # get_file raises a plain Exception when the server cannot be reached
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"the download of {URL} failed ({reason}). If you can get the archive another way, name it with"
            " --data PATH; or use the small slice of it that is already here: --data sample"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)


# ---------------------------------------------------------------- Loading and splitting


def load_with_checksums(source=None):
    """Return (Cifar10, {file name: MD5}) from `source`; see load_cifar10 for what that may be and what is raised."""
    path = _download() if source is None else SAMPLE if source == "sample" else Path(os.path.expanduser(source))
    # os.path answers False where Path raises (a name too long for the system). A pipe is neither folder nor file.
    if not os.path.isdir(path) and not os.path.isfile(path):
        raise DataError(f"there is no folder or file {path}; --data takes a folder, a tar archive, or the word sample")
    files = _files_in_folder(path) if path.is_dir() else _files_in_archive(path)

    batches, checksums = {}, {}
    try:
        for name, raw in files:
            checksums[name] = hashlib.md5(raw, usedforsecurity=False).hexdigest()
            if name == META_FILE:
                _check_meta(raw)
            else:
                batches[name] = _parse_batch(raw, name)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if missing := [name for name in (*TRAIN_FILES, TEST_FILE) if name not in batches]:
        raise DataError(f"{path} is not a complete CIFAR-10: {', '.join(missing)} missing")

    images, labels = (np.concatenate(part) for part in zip(*(batches[name] for name in TRAIN_FILES), strict=True))
    x_test, y_test = batches[TEST_FILE]
    # The last tenth of the training images is for validation: 5,000 of 50,000. The files are in random order already,
    # so that the end is as good a sample as any; and a fixed split makes runs comparable.
    cut = len(images) - len(images) // 10
    if cut == len(images) or len(x_test) == 0:
        raise DataError(f"{path} has {len(images)} training and {len(x_test)} test images; 10 and 1 are the least")
    return Cifar10(images[:cut], labels[:cut], images[cut:], labels[cut:], x_test, y_test), checksums


def load_cifar10(source=None):
    """Return CIFAR-10 as a Cifar10 tuple: x_train, y_train, x_val, y_val, x_test, y_test.

    source: None        the official archive, fetched once to ~/.keras/datasets and checked by its SHA-256
            a folder    `cifar-10-batches-py` or the folder that holds it
            a file      a tar archive, plain or compressed with gzip, bzip2 or xz; nothing is extracted to disk
            "sample"    the slice of 1,500 training and 500 test images that comes with this code

    Images are uint8 (N, 32, 32, 3), labels int64 (N,). The last 10 % of the training images are the validation split:
    45,000 / 5,000 / 10,000 images on the full data set. Batch files may hold other numbers of images, up
    to 20,000 each.
    Raises DataError, a ValueError whose message names the file and what is wrong with it.
    """
    return load_with_checksums(source)[0]


def provenance(source, checksums):
    """Return what a run records about its data, for JSON: where from, which files, official or sample or neither."""
    if source not in (None, "sample"):
        source = os.path.realpath(os.path.expanduser(source))  # so that it can be found again from another folder
    return {
        "source": source,
        "official": checksums == OFFICIAL_MD5,
        "sample": checksums[TEST_FILE] == SAMPLE_TEST_MD5,
        "md5": dict(sorted(checksums.items())),
    }


def get_onehot(labels):
    """Return labels (N,) of 0…9 as one-hot rows: float32 (N, 10), a 1 at the label and 0 elsewhere."""
    return keras.utils.to_categorical(labels, len(CLASS_NAMES)).astype("float32")


# ---------------------------------------------------------------- Looking at the data


def plot_samples(images, labels, path, per_class=8):
    """Write a figure with the first `per_class` images of each class, a row a class, to `path` (PNG)."""
    figure = Figure(figsize=(1.1 * per_class + 1.6, 11))
    axes = figure.subplots(len(CLASS_NAMES), per_class, squeeze=False)
    for label, row in enumerate(axes):
        row[0].set_ylabel(CLASS_NAMES[label], rotation=0, ha="right", va="center", fontsize=12)
        for axis in row:
            axis.set(xticks=[], yticks=[])
        for axis, image in zip(row, images[labels == label][:per_class], strict=False):  # a tiny set may have fewer
            axis.imshow(image)
    figure.tight_layout()
    figure.savefig(path)


def draw_network(network, path):
    """Draw the graph of a Keras model to `path` (PNG), shapes shown, layer names not; return a line that says so.

    Drawing needs pydot and the graphviz program; where they are missing, the line says how to get them.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    try:
        keras.utils.plot_model(network, path, show_shapes=True, show_layer_names=False)
    except ImportError:
        return "No graph drawn: that needs pydot (pip install pydot) and graphviz (apt install graphviz)"
    return f"The network's graph: {path}"


def main(arguments=None):
    """Print the six shapes and draw the samples: the command line of this step."""
    parser = argparse.ArgumentParser(description="Step 1: CIFAR-10, its shapes and eight images of each class.")
    parser.add_argument("--data", metavar="SOURCE", help="a folder, a tar archive, or sample (default: fetch CIFAR-10)")
    parser.add_argument("--out", default="figures", metavar="DIR", help="folder for the figure (default: figures)")
    options = parser.parse_args(arguments)
    try:
        os.makedirs(options.out, exist_ok=True)
        data = load_cifar10(options.data)
    except (DataError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    for split in ("train", "val", "test"):
        images, labels = getattr(data, f"x_{split}"), getattr(data, f"y_{split}")
        left = f"x_{split:<5} {images.shape} {images.dtype}"
        print(f"{left:<35} y_{split:<5} {labels.shape} {labels.dtype}")
    path = Path(options.out, "samples.png")
    plot_samples(data.x_train, data.y_train, path)
    print(f"Eight images of each class: {path}")


if __name__ == "__main__":
    main()
