"""Tests of data.py: what it reads, what it refuses and with which words, the download, the command line.

No network: a download comes from a server in here. The hostile files are real, and first shown to be.
"""

import bz2
import gzip
import hashlib
import http.server
import io
import itertools
import lzma
import os
import pickle
import re
import socket
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
from cifar_files import ROOT, tar_bytes
from matplotlib.image import imread

import data

BATCHES = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
ARCHIVE = (ROOT / "cifar-10-sample.tar.gz").read_bytes()
with tarfile.open(fileobj=io.BytesIO(ARCHIVE)) as sample_archive:
    FILES = {Path(m.name).name: sample_archive.extractfile(m).read() for m in sample_archive if m.isfile()}
CONTENTS = {name: pickle.loads(FILES[name], encoding="bytes") for name in BATCHES}
SAMPLE = data.load_cifar10("sample")
IMAGES, LABELS = SAMPLE.x_train[:20], SAMPLE.y_train[:20]
SHA256 = data.SHA256


def make(path, content):
    """Make what `content` says: a dictionary a folder, bytes a file, "pipe" a named pipe, None nothing. Return path."""
    if isinstance(content, dict):
        path.mkdir(parents=True)
        for name, inner in content.items():
            make(path / name, inner)
    elif content == "pipe":
        os.mkfifo(path)
    elif content is not None:
        path.write_bytes(content)
    return path


def npz_bytes(**changes):
    """Return an .npz file of 20 training and 10 test images; `changes` replaces arrays, None leaves one out."""
    arrays = {"x_train": IMAGES, "y_train": LABELS, "x_test": SAMPLE.x_test[:10], "y_test": LABELS[:10]} | changes
    stream = io.BytesIO()
    np.savez(stream, **{name: array for name, array in arrays.items() if array is not None})
    return stream.getvalue()


def refusal(function, *arguments):
    """Return the message of the DataError that function(*arguments) must raise, after a look at its form."""
    with pytest.raises(data.DataError) as caught:
        function(*arguments)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_same(left, right):
    for one, other in zip(left, right, strict=True):
        np.testing.assert_array_equal(one, other)


class Trap:
    """Unpickling it makes a folder `trapped` in the current folder."""

    def __reduce__(self):
        return os.mkdir, ("trapped",)


@pytest.fixture
def unpickled(monkeypatch):
    """The list of what pickle.loads was called with."""
    calls, loads = [], pickle.loads
    monkeypatch.setattr(pickle, "loads", lambda raw, **keywords: calls.append(raw) or loads(raw, **keywords))
    return calls


# ---------------------------------------------------------------- What is read


def test_sample_equals_what_tarfile_and_pickle_read_and_is_balanced():
    y, x, channel = np.indices((32, 32, 3))
    images = [CONTENTS[name][b"data"][:, channel * 1024 + y * 32 + x] for name in BATCHES]
    labels = [CONTENTS[name][b"labels"] for name in BATCHES]
    train, train_labels = np.concatenate(images[:5]), np.concatenate(labels[:5])
    assert_same(SAMPLE, (train[:1350], train_labels[:1350], train[1350:], train_labels[1350:], images[5], labels[5]))
    names = pickle.loads(FILES["batches.meta"], encoding="bytes")[b"label_names"]
    assert names == [name.encode() for name in data.CLASS_NAMES]
    assert [array.dtype for array in SAMPLE] == [np.uint8, np.int64] * 3
    assert [np.bincount(labels).tolist() for labels in SAMPLE[1::2]] == [[135] * 10, [15] * 10, [50] * 10]
    assert all(array.flags.c_contiguous and array.flags.writeable for array in SAMPLE)


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch"])
def test_channels_rows_and_columns_keep_their_places(name):
    images, labels = data.load_batch(FILES[name], name)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
    assert images.flags.c_contiguous
    assert labels.tolist() == CONTENTS[name][b"labels"]
    for k in (0, 7, len(images) - 1):
        places = itertools.product(range(3), range(32), range(32))  # red, green, blue; each row by row
        for (channel, y, x), value in zip(places, CONTENTS[name][b"data"][k].tolist(), strict=True):
            assert images[k, y, x, channel] == value


def test_folder_parent_and_archives_give_the_same_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "parent" / "cifar-10-batches-py", FILES)
    tar = tar_bytes(FILES)
    archives = {"plain.tar": tar, "other.tar": tar_bytes(FILES, folder="./some/where")}
    archives |= {"a.tar.gz": gzip.compress(tar, 1), "b.tbz": bz2.compress(tar, 1), "c": lzma.compress(tar, preset=0)}
    for name, content in archives.items():
        make(tmp_path / name, content)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    folders = ["parent", "parent/cifar-10-batches-py/", tmp_path / "parent", "~/parent", Path("~", "parent")]
    for source in folders + list(archives):
        assert_same(data.load_cifar10(source), SAMPLE)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int64", "uint64", ">i4"])
def test_npz_of_ones_own_images_is_read(tmp_path, dtype, shape):
    labels = np.arange(30).astype(dtype) % 10
    content = npz_bytes(y_train=labels[:20].reshape(shape), y_test=labels[20:].reshape(shape))
    loaded = data.load_cifar10(make(tmp_path / "mine.npz", content))
    x, y = SAMPLE.x_train, list(range(10)) * 2
    assert_same(loaded, (x[:18], y[:18], x[18:20], y[18:], SAMPLE.x_test[:10], list(range(10))))
    assert [array.dtype for array in loaded] == [np.uint8, np.int64] * 3
    assert [array.ndim for array in loaded] == [4, 1] * 3


@pytest.mark.parametrize(("count", "validation"), [(2, 1), (9, 1), (19, 1), (20, 2), (39, 3), (1350, 135)])
def test_last_tenth_of_the_training_images_is_for_validation(tmp_path, count, validation):
    x, y, cut = SAMPLE.x_train[:count], SAMPLE.y_train[:count], count - validation
    loaded = data.load_cifar10(str(make(tmp_path / "mine.npz", npz_bytes(x_train=x, y_train=y))))
    assert_same(loaded[:4], (x[:cut], y[:cut], x[cut:], y[cut:]))


# ---------------------------------------------------------------- Only published files are unpickled


HOSTILE = pickle.dumps(Trap())


def test_traps_are_as_dangerous_as_the_tests_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(HOSTILE)
    os.rmdir("trapped")  # it was there
    np.savez("trap.npz", x_train=np.array([Trap()]))
    with np.load("trap.npz", allow_pickle=True) as arrays:
        arrays["x_train"]
    os.rmdir("trapped")


def test_each_batch_file_is_unpickled_under_its_own_name_and_whole_only(unpickled):
    for name in BATCHES:
        for other in {*BATCHES} - {name}:
            assert f"{other} is not the published file" in refusal(data.load_batch, FILES[name], other)
    for position in (0, 100, 500_000, -1):
        raw = bytearray(FILES["data_batch_4"])
        raw[position] ^= 1
        assert "data_batch_4 is not the published file" in refusal(data.load_batch, bytes(raw), "data_batch_4")
    assert unpickled == []
    data.load_batch(FILES["test_batch"], "test_batch")
    assert unpickled == [FILES["test_batch"]]


NOT_PUBLISHED = "data_batch_1 is not the published file"
LACKS_ALL = "lacks data_batch_1, data_batch_2, data_batch_3, data_batch_4, data_batch_5, test_batch; it contains"
UNREADABLE = "cannot be read as a folder or tar archive"
WEB_PAGE = b"<!DOCTYPE html>\n<html><title>Moved</title></html>\n"
CIFAR100 = dict.fromkeys(("train", "test", "meta"), FILES["test_batch"])
BINARY = {"batches.meta.txt": b"airplane\n"} | {f"data_batch_{k}.bin": bytes(3073) for k in range(1, 6)}
NPZ, DAMAGED = npz_bytes(), "is damaged or not such a file ("
PIXEL = NPZ.index(IMAGES[5].tobytes())  # stored as it is, with a checksum
OBJECTS = np.array([Trap()] * 20)
BAD_SOURCES = {  # the source's name: (what it is, what the message says)
    "hostile": (FILES | {"data_batch_1": HOSTILE}, NOT_PUBLISHED),
    "hostile.tar": (tar_bytes(FILES | {"data_batch_1": HOSTILE}), NOT_PUBLISHED),
    "of_python_3": (FILES | {"data_batch_1": pickle.dumps(CONTENTS["data_batch_1"])}, NOT_PUBLISHED),
    "empty_file": (FILES | {"data_batch_1": b""}, NOT_PUBLISHED),
    "web_page_inside": (FILES | {"data_batch_1": WEB_PAGE}, NOT_PUBLISHED),
    "cifar-100-python": (CIFAR100, f"cifar-100-python {LACKS_ALL} meta, test, train."),
    "cifar-100-python.tar": (tar_bytes(CIFAR100), f"cifar-100-python.tar {LACKS_ALL} meta, test, train."),
    "cifar-10-batches-bin": (BINARY, f"bin {LACKS_ALL} batches.meta.txt, data_batch_1.bin, data_batch_2.bin, "),
    "five": (FILES | {"data_batch_4": None}, "five lacks data_batch_4; it contains batches.meta, data_batch_1, "),
    "folder_inside": (FILES | {"test_batch": {}}, "folder_inside lacks test_batch"),
    "pipe_inside": (FILES | {"data_batch_1": "pipe"}, "pipe_inside lacks data_batch_1"),
    "line_break": ({"a\nb": b""}, "it contains a b."),
    "pictures": ({"cat.1.jpg": b"\xff\xd8", "cat.2.jpg": b"\xff\xd8"}, f"pictures {LACKS_ALL} cat.1.jpg, cat.2.jpg."),
    "empty": ({}, f"empty {LACKS_ALL} nothing."),
    "empty.tar": (tar_bytes({}), f"empty.tar {LACKS_ALL} nothing."),
    "page.tar.gz": (WEB_PAGE, f"page.tar.gz {UNREADABLE}"),
    "cifar.zip": (NPZ, f"cifar.zip {UNREADABLE}"),  # an .npz is a zip
    "nothing.tar.gz": (b"", f"nothing.tar.gz {UNREADABLE}"),
    "half.tar.gz": (ARCHIVE[: len(ARCHIVE) // 2], f"half.tar.gz {UNREADABLE} (Compressed file ended"),
    "damaged.tar.gz": (ARCHIVE[:99999] + bytes(9) + ARCHIVE[100_008:], "damaged.tar.gz "),
    "half.npz": (NPZ[: len(NPZ) // 2], f"half.npz {DAMAGED}"),
    "one_pixel.npz": (NPZ[:PIXEL] + b"?" + NPZ[PIXEL + 1 :], f"one_pixel.npz {DAMAGED}Bad CRC-32"),
    "one_array.npz": (NPZ[NPZ.index(b"\x93NUMPY") :][: 128 + IMAGES.nbytes], f"one_array.npz {DAMAGED}"),
    "page.npz": (WEB_PAGE, f"page.npz {DAMAGED}"),
    "nothing.npz": (b"", f"nothing.npz {DAMAGED}"),
    "folder.npz": (FILES, f"folder.npz {DAMAGED}"),
    "lacks_x_train.npz": (npz_bytes(x_train=None), f"{DAMAGED}'x_train is not"),
    "lacks_y_test.npz": (npz_bytes(y_test=None), f"{DAMAGED}'y_test is not"),
    "objects_x_train.npz": (npz_bytes(x_train=OBJECTS), f"{DAMAGED}Object arrays"),
    "objects_y_test.npz": (npz_bytes(y_test=OBJECTS), f"{DAMAGED}Object arrays"),
    "nowhere": (None, "there is no folder or file nowhere."),
    "no\nwhere": (None, "there is no folder or file no where."),
    "~nobody-of-this-name/x": (None, "there is no folder or file ~nobody"),
    "pipe.tar": ("pipe", "there is no folder or file pipe.tar."),
    "x" * 5000: (None, "there is no folder or file xxx"),
}


@pytest.mark.parametrize("name", BAD_SOURCES, ids=lambda name: name[:20])
def test_bad_source_is_refused_with_what_it_is_and_what_is_accepted(tmp_path, monkeypatch, unpickled, name):
    monkeypatch.chdir(tmp_path)
    content, words = BAD_SOURCES[name]
    make(Path(name), content)
    message = refusal(data.load_cifar10, name)
    assert words in message
    assert 'numpy.savez("mine.npz", x_train=…, y_train=…, x_test=…, y_test=…)' in message
    assert len(message) < 1000
    assert unpickled == []
    assert not Path("trapped").exists()


# ---------------------------------------------------------------- Images of one's own


BAD_ARRAYS = {  # x: images, y: labels, and what the message says was given
    "float images": ("x", IMAGES / 255, "got float64 (20, 32, 32, 3). Floats of 0…1 become bytes with (255 * images)."),
    "signed bytes": ("x", IMAGES.astype(np.int8), "got int8"),
    "channels first": ("x", np.zeros((20, 3, 32, 32), np.uint8), "got uint8 (20, 3, 32, 32)"),
    "grey": ("x", np.zeros((20, 32, 32), np.uint8), "got uint8 (20, 32, 32)"),
    "rows of the batch files": ("x", np.zeros((20, 3072), np.uint8), "got uint8 (20, 3072)"),
    "one image": ("x", IMAGES[:1], "two or more; got uint8 (1, 32, 32, 3)"),
    "no images": ("x", IMAGES[:0], "two or more; got uint8 (0, 32, 32, 3)"),
    "a number": ("x", np.uint8(7), "got uint8 ()"),
    "labels 1 to 10": ("y", LABELS + 1, "got int64 (20,), values 1…10"),
    "label -1": ("y", LABELS - 1, "got int64 (20,), values -1…8"),
    "label 255": ("y", np.uint8(LABELS) - np.uint8(1), "got uint8 (20,), values 0…255"),
    "one-hot": ("y", np.eye(10, dtype=np.int64)[LABELS], "got int64 (20, 10)"),
    "float one-hot": ("y", np.eye(10)[LABELS], "got float64 (20, 10)"),
    "float labels": ("y", LABELS.astype(np.float32), "got float32 (20,)"),
    "truth values": ("y", LABELS > 4, "got bool (20,)"),
    "words": ("y", np.array(data.CLASS_NAMES)[LABELS], "got <U10 (20,)"),
    "too few labels": (
        "y",
        LABELS[:19],
        "20 whole numbers 0…9 of shape (N,) or (N, 1), one per image; got int64 (19,)",
    ),
    "labels in a row": ("y", LABELS[None], "got int64 (1, 20)"),
}


@pytest.mark.parametrize(("kind", "array", "words"), BAD_ARRAYS.values(), ids=BAD_ARRAYS.keys())
def test_images_and_labels_of_another_form_are_refused_with_what_was_given(tmp_path, kind, array, words):
    assert words in (refusal(data.check_images, array) if kind == "x" else refusal(data.check_labels, array, 20))
    for split in ("train", "test"):
        content = npz_bytes(**{f"x_{split}": IMAGES, f"y_{split}": LABELS} | {f"{kind}_{split}": array})
        assert words in refusal(data.load_cifar10, make(tmp_path / "mine.npz", content))


def test_good_images_and_labels_pass_the_checks():
    data.check_images(IMAGES[:2])
    for labels in ([0, 9, 4], np.array([[0], [9], [4]], np.uint8), np.array([0, 9, 4], ">u2")):
        checked = data.check_labels(labels, 3)
        assert checked.dtype == np.int64
        assert checked.tolist() == [0, 9, 4]


# ---------------------------------------------------------------- One-hot labels, fingerprint, figure


def test_onehot_has_a_one_at_the_label_and_zeros_elsewhere():
    onehot = data.get_onehot(np.array([3, 0, 9, 3], np.int64))
    assert onehot.dtype == np.float32
    assert onehot.tolist() == [[float(column == label) for column in range(10)] for label in (3, 0, 9, 3)]


def test_fingerprint_of_the_sample_is_the_one_written_down():
    assert data.FINGERPRINTS[data.fingerprint(SAMPLE)] == "sample"
    in_another_layout = data.Cifar10(*(np.asfortranarray(array) for array in SAMPLE))
    assert data.fingerprint(in_another_layout) == data.fingerprint(SAMPLE)
    assert sorted(data.FINGERPRINTS.values()) == ["official", "sample"]


def test_fingerprint_differs_if_a_value_a_shape_or_the_order_differs():
    x, y = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3), np.arange(2)
    small = data.Cifar10(x, y, x + 50, y + 2, x + 100, y + 4)
    variants = [small]
    for field, array in small._asdict().items():
        for k in range(array.size):
            changed = array.copy()
            changed.flat[k] += 1
            variants.append(small._replace(**{field: changed}))
        variants.append(small._replace(**{field: array[::-1]}))
        variants.append(small._replace(**{field: array.reshape(-1, 1)}))
    variants.append(data.Cifar10(*small[2:4], *small[:2], *small[4:]))
    both, labels = np.concatenate([x, x + 50]), np.arange(4)
    variants.append(data.Cifar10(both[:1], labels[:1], both[1:], labels[1:], *small[4:]))  # the split moved
    assert len(variants) == 1 + 3 * 26 + 6 * 2 + 2
    assert len({data.fingerprint(variant) for variant in variants}) == len(variants)


def test_figure_shows_the_first_eight_images_of_each_class_in_its_row(tmp_path):
    pairs = [(k, i) for i in range(9) for k in range(9) if k != 6 or i < 2]  # class and number; none of class 9
    images = np.array([np.full((32, 32, 3), (20 * k + 10, 20 * i + 10, 128), np.uint8) for k, i in pairs])
    data.plot_samples(images, np.array(pairs)[:, 0], tmp_path / "figure.png")
    picture = (imread(tmp_path / "figure.png")[:, :, :3] * 255).round().astype(int) @ (65536, 256, 1)
    middle = {}
    for k, i in pairs:
        places = np.argwhere(picture == (20 * k + 10) * 65536 + (20 * i + 10) * 256 + 128)
        assert (len(places) > 0) == (i < 8)
        if i < 8:
            middle[k, i] = places.mean(axis=0)
    for (k, i), centre in middle.items():
        assert centre == pytest.approx((middle[k, 0][0], middle[0, i][1]), abs=2)  # they stand in a grid
        assert k == 0 or centre[0] > middle[k - 1, 0][0] + 32
        assert i == 0 or centre[1] > middle[0, i - 1][1] + 32


# ---------------------------------------------------------------- Download


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine; the path of the URL says what it does, `asked` lists what it was asked for."""
    release = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            served.asked.append(self.path)
            body = b"another file" if self.path == "/wrong" else ARCHIVE
            self.send_response(404 if self.path == "/missing" else 200)
            self.send_header("Content-Length", len(body))
            self.end_headers()
            self.wfile.write(body if self.path in ("/good", "/wrong") else body[:9000])
            if self.path == "/silent":
                release.wait(60)

        def log_message(self, *_):
            pass

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.daemon_threads, served.block_on_close = True, False
    served.asked, served.cached = [], tmp_path / "datasets" / "cifar-10-batches-py-target_archive"
    threading.Thread(target=served.serve_forever, args=(0.05,), daemon=True).start()
    closed = socket.socket()
    closed.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
    ports = {"dead": closed.getsockname()[1]}

    def choose(*paths):
        urls = tuple(f"http://127.0.0.1:{ports.get(path, served.server_port)}/{path}" for path in paths)
        monkeypatch.setattr(data, "URLS", urls)
        return urls

    served.choose = choose
    monkeypatch.setattr(data, "SHA256", hashlib.sha256(ARCHIVE).hexdigest())
    monkeypatch.setattr(data, "SILENCE", 3)
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))  # what KERAS_HOME sets at import
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield served
    release.set()
    served.shutdown()
    served.server_close()
    closed.close()


FAILURES = {
    "dead": "Connection refused",
    "silent": "timed out",
    "wrong": "hash does not match",
    "missing": "404",
    "broken": "only 9000 out of",
}


@pytest.mark.parametrize("failure", FAILURES)
def test_second_server_is_asked_if_the_first_fails_and_its_file_is_kept(server, failure):
    server.choose(failure, "good")
    asked = ["/good"] if failure == "dead" else [f"/{failure}", "/good"]
    assert_same(data.load_cifar10(), SAMPLE)
    assert server.asked == asked
    assert data.download() == server.cached
    assert server.cached.read_bytes() == ARCHIVE
    assert server.asked == asked
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize(("first", "second"), [("dead", "missing"), ("wrong", "broken"), ("silent", "dead")])
def test_failed_download_is_one_line_with_both_reasons_and_the_ways_out(server, tmp_path, first, second):
    server.choose(first, second)
    message = refusal(data.load_cifar10)
    for words in (FAILURES[first], FAILURES[second], "cifar-10-python.tar.gz", "--data PATH", "--data sample"):
        assert words in message
    assert socket.getdefaulttimeout() is None
    if first == "dead":
        with pytest.raises(SystemExit) as caught:
            data.main(["--out", str(tmp_path)])
        assert caught.value.code == f"error: {message}"
        assert not (tmp_path / "samples.png").exists()


def test_archive_left_by_keras_itself_is_used(server, monkeypatch):
    class Fetched(Exception):
        pass

    def get_file(**arguments):
        assert (arguments["file_hash"], arguments["origin"]) == (SHA256, data_urls[1])
        keras.utils.get_file(**arguments | {"origin": url, "file_hash": data.SHA256})
        raise Fetched  # Keras would go on to read the full data set from it

    data_urls = data.URLS
    (url,) = server.choose("good")
    monkeypatch.setattr("keras.src.datasets.cifar10.get_file", get_file)
    with pytest.raises(Fetched):
        keras.datasets.cifar10.load_data()
    assert server.asked == ["/good"]
    server.choose("missing")
    assert_same(data.load_cifar10(), SAMPLE)
    assert server.asked == ["/good"]


@pytest.mark.parametrize("cached", [b"", ARCHIVE[:-1], ARCHIVE[:5000] + b"?" + ARCHIVE[5001:], ARCHIVE + b"\0"])
def test_damaged_file_in_the_cache_is_fetched_again(server, cached):
    server.choose("good")
    server.cached.parent.mkdir()
    server.cached.write_bytes(cached)
    assert_same(data.load_cifar10(), SAMPLE)
    assert server.asked == ["/good"]
    assert server.cached.read_bytes() == ARCHIVE


# ---------------------------------------------------------------- The command line and its surroundings


def test_module_prints_versions_and_shapes_and_draws_the_sample(tmp_path, capsys):
    path = tmp_path / "new" / "folder" / "samples.png"
    data.main(["--data", "sample", "--out", str(path.parent)])
    versions, *shapes, last = capsys.readouterr().out.splitlines()
    assert f"Keras {keras.__version__}, TensorFlow " in versions
    assert versions.endswith("backend tensorflow, image data format channels_last")
    promised = re.findall(r"^ +(x_\w+ .*)$", data.__doc__, re.MULTILINE)
    for full, here in (("45000", "1350"), ("5000", "150"), ("10000", "500")):
        promised = [line.replace(f"({full},", f"({here},") for line in promised]
    assert len(shapes) == 3
    assert [line.split() for line in shapes] == [line.split() for line in promised]
    assert last == f"Eight images of each class: {path}"
    assert last.replace(str(path), "figures/samples.png") in data.__doc__
    height, width, _ = imread(path).shape
    assert 500 < width < 4000
    assert 500 < height < 4000


@pytest.mark.parametrize(
    ("source", "out", "words"),
    [
        ("nowhere", "out", "there is no folder or file nowhere. Accepted: "),
        ("sample", "file", "[Errno "),
        ("sample", "file/folder", "[Errno "),
        ("sample", "/proc/x", "[Errno "),
        ("sample", "folder", "[Errno "),  # in which there is a folder in place of the figure
    ],
)
def test_what_the_user_can_mend_is_one_line_and_status_1(tmp_path, monkeypatch, source, out, words):
    make(tmp_path / "here", {"file": b"", "folder": {"samples.png": {}}})
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(SystemExit) as caught:
        data.main(["--data", source, "--out", out])
    assert caught.value.code.startswith(f"error: {words}")  # Python prints a text to stderr and exits with status 1
    assert "\n" not in caught.value.code
    assert source != "sample" or out in caught.value.code


SCRIPT = """
import sys
import data, keras
if sys.argv[1:]:
    data.URLS, data.SHA256 = sys.argv[1:2], sys.argv[2]
data.main(["--out", "Bäume"] + ["--data", "sample"] * (not sys.argv[1:]))
print(keras.config.floatx(), keras.config.epsilon())
"""


def run_script(tmp_path, *arguments, end=""):
    """Run SCRIPT with the settings that notebooks and other projects leave behind; `end` ends the shell's command."""
    settings = '{"image_data_format": "channels_first", "floatx": "float16", "epsilon": 1e-3, "backend": "jax"}'
    make(tmp_path / "home", {"keras.json": settings.encode()})
    changes = {"KERAS_HOME": str(tmp_path / "home"), "KERAS_BACKEND": "jax", "PYTHONIOENCODING": "ascii"}
    changes |= {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYTHONPATH": str(ROOT)}
    command = ["sh", "-c", f'exec "$0" -c "$@" {end}', sys.executable, SCRIPT, *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | changes, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert imread(tmp_path / "Bäume" / "samples.png").size
    return done.stdout.decode("ascii")


def test_settings_for_keras_matplotlib_and_the_terminal_do_not_matter(tmp_path):
    versions, *_, last, numbers = run_script(tmp_path).splitlines()
    assert versions.endswith("backend tensorflow, image data format channels_last")
    assert last == "Eight images of each class: B?ume/samples.png"
    assert numbers == "float32 1e-07"


def test_closed_standard_output_does_not_matter_even_for_a_download(tmp_path, server):
    assert run_script(tmp_path, *server.choose("good"), data.SHA256, end=">&-") == ""
    assert server.asked == ["/good"]
