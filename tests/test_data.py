"""data.py: what it reads, what it never opens, with which words it refuses, the download, and the command line.

No network: a download comes from a server in here. The hostile files are real, and first shown to be.
"""

import bz2
import hashlib
import http.server
import io
import os
import pickle
import platform
import re
import socket
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

import data

ROOT = Path(data.__file__).parent
BATCHES = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
ARCHIVE = (ROOT / "cifar-10-sample.tar.gz").read_bytes()
with tarfile.open(fileobj=io.BytesIO(ARCHIVE)) as sample_archive:
    FILES = {Path(m.name).name: sample_archive.extractfile(m).read() for m in sample_archive if m.isfile()}
CONTENTS = {name: pickle.loads(raw, encoding="bytes") for name, raw in FILES.items()}
FIVE = {name: raw for name, raw in FILES.items() if name != "data_batch_1"}
SAMPLE, SHA256 = data.load_cifar10("sample"), data.SHA256
IMAGES, LABELS = SAMPLE.x_test[:20], SAMPLE.y_test[:20]  # of the classes 0, 1, … 9, 0, 1, … 9


def make(path, content):
    """Make what `content` says: a dict a folder, bytes a file, "pipe" a named pipe, None nothing. Return the path."""
    if isinstance(content, dict):
        path.mkdir(parents=True)
        for name, inner in content.items():
            make(path / name, inner)
    elif content == "pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("Windows has no named pipes in folders")
        os.mkfifo(path)
    elif content is not None:
        path.write_bytes(content)
    return path


def tar_bytes(files, **attributes):
    """Return a tar archive of {name: content}; the attributes (type, linkname, …) are those of its last member."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(os.path.join("some/where", name))  # an absolute path stays as it is
            member.size = len(content)
            for attribute, value in attributes.items() if name == list(files)[-1] else ():
                setattr(member, attribute, value)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def npz_bytes(**changes):
    """Return an .npz file of 20 training and 20 test images; `changes` replaces or adds arrays, None leaves one out."""
    arrays = {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES, "y_test": LABELS} | changes
    stream = io.BytesIO()
    np.savez(stream, **{name: array for name, array in arrays.items() if array is not None})
    return stream.getvalue()


def refusal(function, *arguments):
    """Return the message of the DataError that function(*arguments) must raise: one line, nothing but text."""
    with pytest.raises(data.DataError) as caught:
        function(*arguments)
    assert str(caught.value).isprintable()
    return str(caught.value)


def assert_same(left, right):
    for one, other in zip(left, right, strict=True):
        np.testing.assert_array_equal(one, other)


class Trap:
    """Unpickling it makes a folder `trapped` in the current folder."""

    def __reduce__(self):
        return os.mkdir, ("trapped",)


HOSTILE, OBJECTS = pickle.dumps(Trap()), np.array([Trap()] * 20)


# ---------------------------------------------------------------- What is read


def test_sample_has_each_pixel_in_its_place_and_is_balanced():
    y, x, channel = np.indices((32, 32, 3))
    images = [CONTENTS[name][b"data"][:, channel * 1024 + y * 32 + x] for name in BATCHES]
    labels = [CONTENTS[name][b"labels"] for name in BATCHES]
    train, train_labels = np.concatenate(images[:5]), np.concatenate(labels[:5])
    assert_same(SAMPLE, (train[:1350], train_labels[:1350], train[1350:], train_labels[1350:], images[5], labels[5]))
    assert [array.dtype for array in SAMPLE] == [np.uint8, np.int64] * 3
    assert all(array.flags.c_contiguous and array.flags.writeable for array in SAMPLE)
    assert [np.bincount(labels).tolist() for labels in SAMPLE[1::2]] == [[135] * 10, [15] * 10, [50] * 10]
    assert CONTENTS["batches.meta"][b"label_names"] == [name.encode() for name in data.CLASS_NAMES]


def test_folder_parent_and_archives_give_the_same_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "parent" / "cifar-10-batches-py", FILES)
    make(tmp_path / "compressed", bz2.compress(tar_bytes(FILES), 1))
    make(tmp_path / "a.tar", tar_bytes(FIVE | {f"{tmp_path}/data_batch_1": FILES["data_batch_1"]}))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for source in ["parent", "parent/cifar-10-batches-py/", Path("~", "parent"), "~/compressed", "a.tar"]:
        assert_same(data.load_cifar10(source), SAMPLE)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("name", ["mine.npz", "MINE.NPZ", "link.tar.gz"])
def test_npz_sorted_by_class_is_known_by_its_content_and_split_at_random_in_a_fixed_way(tmp_path, name):
    order = np.argsort(SAMPLE.y_test, kind="stable")  # fifty images of class 0, fifty of class 1, …
    path = make(tmp_path / "file", npz_bytes(x_train=SAMPLE.x_test[order], y_train=SAMPLE.y_test[order]))
    (tmp_path / name).symlink_to(path)
    loaded = data.load_cifar10(tmp_path / name)
    assert [len(array) for array in loaded] == [450, 450, 50, 50, 20, 20]
    assert set(loaded.y_train) == set(loaded.y_val) == set(range(10))
    numbers = {image.tobytes(): i for i, image in enumerate(SAMPLE.x_test)}
    found = [numbers[image.tobytes()] for image in np.concatenate([loaded.x_train, loaded.x_val])]
    assert sorted(found) == list(range(500))  # each image once, and with its label:
    assert_same(SAMPLE.y_test[found], np.concatenate([loaded.y_train, loaded.y_val]))
    assert_same(loaded[4:], (IMAGES, LABELS))
    assert_same(data.load_cifar10(str(path)), loaded)


def test_a_tenth_of_the_training_images_and_at_least_one_is_for_validation(tmp_path):
    for count, validation in ((2, 1), (19, 1), (20, 2)):
        path = make(tmp_path / "mine.npz", npz_bytes(x_train=IMAGES[:count], y_train=LABELS[:count]))
        assert [len(array) for array in data.load_cifar10(path)[:4]] == [count - validation] * 2 + [validation] * 2
    path = make(tmp_path / "mine.npz", npz_bytes(x_train=IMAGES[:1], y_train=LABELS[:1]))
    assert refusal(data.load_cifar10, path).startswith(f"{path} has one training image; two are needed")


# ---------------------------------------------------------------- Nothing is unpickled but what is published


def test_traps_are_as_dangerous_as_the_tests_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(HOSTILE)
    os.rmdir("trapped")  # it was there
    with np.load(io.BytesIO(npz_bytes(x_train=OBJECTS)), allow_pickle=True) as arrays:
        arrays["x_train"]
    os.rmdir("trapped")


def test_batch_file_is_unpickled_under_its_own_name_and_whole_only():
    for name in BATCHES:
        for other in {*BATCHES} - {name}:
            assert f"{other} is not the published file" in refusal(data.load_batch, FILES[name], other)
    for position in (0, 500_000, -1):
        raw = bytearray(FILES["data_batch_4"])
        raw[position] ^= 1
        assert "data_batch_4 is not the published file" in refusal(data.load_batch, bytes(raw), "data_batch_4")


NOT_PUBLISHED, LACKS = "data_batch_1 is not the published file", "is damaged or lacks data_batch_1."
NO_FILES, NO_NPZ = "cannot be read as a folder, tar archive or .npz file (", "cannot be read as an .npz file ("
NPZ = npz_bytes()
PIXEL = NPZ.index(IMAGES[5].tobytes())  # stored as it is, with a checksum
LINK, PIPE = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, {"type": tarfile.FIFOTYPE}
HUGE = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "data_batch_1"}
HUGE |= {"GNU.sparse.realsize": str(2**28)}  # bytes, all of them zeros that are not stored
BAD_SOURCES = {  # the source's name: (what it is, what the message says)
    "hostile": (FILES | {"data_batch_1": HOSTILE}, NOT_PUBLISHED),
    "twice.tar": (tar_bytes(FILES | {"again/data_batch_1": HOSTILE}), NOT_PUBLISHED),
    "huge.tar": (tar_bytes(FIVE | {"x": b"0\n"}, pax_headers=HUGE), NOT_PUBLISHED),
    "link.tar": (tar_bytes(FIVE | {"data_batch_1": b""}, **LINK), f"link.tar {LACKS}"),
    "pipe_inside.tar": (tar_bytes(FIVE | {"data_batch_1": b""}, **PIPE), LACKS),
    "pipe_inside": (FIVE | {"data_batch_1": "pipe"}, f"pipe_inside {LACKS}"),
    "two\nmissing": (dict.fromkeys(BATCHES[1:5], b""), "two missing is damaged or lacks data_batch_1, test_batch."),
    "page.tar.gz": (b"<!DOCTYPE html>\n<html><title>Moved</title></html>\n", f"page.tar.gz {NO_FILES}"),
    "half.tar.gz": (ARCHIVE[: len(ARCHIVE) // 2], f"half.tar.gz {NO_FILES}Compressed file ended"),
    "damaged.tar.gz": (ARCHIVE[:99999] + bytes(9) + ARCHIVE[100_008:], "damaged.tar.gz is damaged or lacks"),
    "half.npz": (NPZ[: len(NPZ) // 2], f"half.npz {NO_FILES}"),
    "one_pixel.npz": (NPZ[:PIXEL] + b"?" + NPZ[PIXEL + 1 :], f"one_pixel.npz {NO_NPZ}Bad CRC-32"),
    "tar_and_npz": (tar_bytes(FILES) + NPZ, f"tar_and_npz {NO_NPZ}"),
    "bare.npz": (HOSTILE, f"bare.npz {NO_FILES}"),
    "objects_x.npz": (npz_bytes(x_train=OBJECTS), f"{NO_NPZ}Object arrays"),
    "objects_y.npz": (npz_bytes(y_test=OBJECTS), f"{NO_NPZ}Object arrays"),
    "lacks.npz": (npz_bytes(x_test=None, y_test=None), "it lacks x_test, y_test; it contains x_train, y_train)"),
    "names.npz": (npz_bytes(y_test=None, **{"a\nb\x1b[2J": LABELS}), "it contains x_train, y_train, x_test, a b [2J)"),
    "nowhere": (None, "there is no folder or file nowhere."),
    "": (None, "is damaged or lacks"),  # the current folder, not a download
    "~nobody-of-this-name/x": (None, "there is no folder or file ~nobody"),
    "pipe.tar": ("pipe", "there is no folder or file pipe.tar."),
    "x" * 5000: (None, "there is no folder or file xxx"),
}


@pytest.mark.parametrize("name", BAD_SOURCES, ids=lambda name: name[:20])
def test_bad_source_is_refused_with_what_it_is_and_what_is_accepted(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    content, words = BAD_SOURCES[name]
    make(Path(name), content)
    before = sorted(tmp_path.rglob("*"))
    message = refusal(data.load_cifar10, name)
    assert words in message
    for accepted in ("cifar-10-python.tar.gz", "cifar-10-batches-py", "the word sample", 'numpy.savez("mine.npz", x_'):
        assert accepted in message
    assert sorted(tmp_path.rglob("*")) == before  # no trap has sprung


def test_no_more_of_a_huge_member_is_read_than_a_batch_file_can_have(tmp_path):
    files = data.read_files(make(tmp_path / "huge.tar", BAD_SOURCES["huge.tar"][0]))
    assert 31_035_999 < len(files.pop("data_batch_1")) < 2**26  # the largest official file has 31,035,999 bytes
    assert files == {name: FILES[name] for name in BATCHES[1:]}


# ---------------------------------------------------------------- Images of one's own, with advice that can be followed

FIRST, GREY = IMAGES.transpose(0, 3, 1, 2), IMAGES[..., 1]
GREY_IN_COLOUR = np.stack([GREY] * 3, axis=-1)
NOISE = np.random.default_rng(0).integers(-99, 100, (20, 96, 64, 3))
LARGE = np.uint8(np.clip(IMAGES.repeat(3, axis=1).repeat(2, axis=2) + NOISE, 0, 255))
FORMS = {  # images: (as they come, as they should become, steps of advice)
    "floats of 0…1": (IMAGES / 255, IMAGES, 1),
    "floats of 0…255": (np.maximum(IMAGES - 0.3, 0), IMAGES, 1),
    "whole numbers": (IMAGES.astype(np.int64), IMAGES, 1),
    "black and white": (IMAGES > 99, IMAGES > 99, 1),
    "channels first": (FIRST, IMAGES, 1),
    "rows of batch files": (FIRST.reshape(20, 3072), IMAGES, 2),
    "grey": (GREY, GREY_IN_COLOUR, 1),
    "grey, channel first": (GREY[:, None], GREY_IN_COLOUR, 2),
    "large": (LARGE, IMAGES, 1),
    "large, floats": (LARGE / 255, IMAGES, 2),
    "all at once": (LARGE[..., 1][:, None].astype(np.int64), GREY_IN_COLOUR, 4),
}


@pytest.mark.parametrize(("given", "wanted", "steps"), FORMS.values(), ids=FORMS.keys())
def test_advice_for_images_followed_word_for_word_leads_to_the_right_images(tmp_path, given, wanted, steps):
    message = ""
    for _ in range(steps):
        path = make(tmp_path / "mine.npz", npz_bytes(x_test=given))
        message = refusal(data.load_cifar10, path)
        found = f"x_test in {path} must be uint8 (N, 32, 32, 3) of 0…255, one or more; got {given.dtype} {given.shape}"
        assert message.startswith(f"{found}; try ")
        given = eval(message.removeprefix(f"{found}; try "), {"images": given, "keras": keras})
    loaded = data.load_cifar10(make(tmp_path / "mine.npz", npz_bytes(x_test=given)))
    difference = np.abs(loaded.x_test - wanted.astype(float)).mean()
    assert difference < 20 if "resize" in message else difference == 0  # 31 without antialias: the noise would stay


def test_images_that_no_advice_fits_are_refused_without_any():
    with_transparency, nan = np.concatenate([IMAGES, IMAGES[..., :1]], axis=-1), np.full(IMAGES.shape, np.nan)
    for images in (IMAGES / 127.5 - 1, IMAGES * 256.0, nan, IMAGES[0], IMAGES[:0], with_transparency, np.array(["a"])):
        assert refusal(data.check_images, images).endswith(f", one or more; got {images.dtype} {images.shape}")


ONE_HOT = np.eye(10)[LABELS]
LABEL_FORMS = {  # labels: (as they come, what the message says was given, advice, labels as they should become)
    "1 to 10": (LABELS + 1, "int64 (20,), values 1…10", "labels - 1", LABELS),
    "2 to 10 in bytes": (np.uint8(LABELS % 9 + 2), "uint8 (20,), values 2…10", "labels - 1", LABELS % 9 + 1),
    "one-hot": (ONE_HOT, "float64 (20, 10)", "labels.argmax(axis=1)", LABELS),
    "from -1": (LABELS - 1, "int64 (20,), values -1…8", "", None),
    "0 to 10": (np.append(LABELS[:-1], 10), "int64 (20,), values 0…10", "", None),
    "floats": (LABELS.astype(float)[:, None], "float64 (20, 1)", "", None),
    "too few": (LABELS[:19], "int64 (19,)", "", None),
    "a row": (LABELS[None], "int64 (1, 20)", "", None),
}


@pytest.mark.parametrize(("labels", "found", "advice", "wanted"), LABEL_FORMS.values(), ids=LABEL_FORMS.keys())
def test_labels_of_another_form_are_refused_with_advice_that_helps(tmp_path, labels, found, advice, wanted):
    for split in ("train", "test"):
        path = make(tmp_path / "mine.npz", npz_bytes(**{f"y_{split}": labels}))
        start = f"y_{split} in {path} must be 20 whole numbers 0…9 of shape (N,) or (N, 1), one per image; got {found}"
        rest = refusal(data.load_cifar10, path).removeprefix(start)
        assert rest.removesuffix(", for all splits") == (f"; try {advice}" if advice else "")
    if advice:
        assert_same([data.check_labels(eval(advice, {"labels": labels}), 20)], [wanted])


def test_good_images_and_labels_pass_and_labels_become_one_row_of_int64():
    for labels in ([0, 9, 4], np.array([[0], [9], [4]], np.uint8), np.array([0, 9, 4], ">u2")):
        images, checked = data.check_data(list(IMAGES[:3]), labels)
        assert_same([images, checked], [IMAGES[:3], [0, 9, 4]])
        assert (images.dtype, checked.dtype) == (np.uint8, np.int64)
    assert data.check_data(LARGE, LABELS, shape=None)[0].shape == LARGE.shape
    assert refusal(data.check_images, GREY, "x_val", None).startswith("x_val must be uint8 (N, H, W, C) of 0…255")
    assert refusal(data.check_data, IMAGES, LABELS[:19], "x_val", "y_val").startswith("y_val must be 20 whole")


# ---------------------------------------------------------------- One-hot labels, fingerprint, figure


def test_onehot_has_a_one_at_the_label_and_zeros_elsewhere():
    onehot = data.get_onehot(np.array([3, 0, 9, 3], np.int64))
    assert onehot.dtype == np.float32
    assert onehot.tolist() == [[float(column == label) for column in range(10)] for label in (3, 0, 9, 3)]


def test_fingerprint_knows_the_sample_and_differs_if_a_value_a_shape_or_the_order_differs():
    train, labels = np.concatenate(SAMPLE[:4:2]), np.concatenate(SAMPLE[1:4:2])
    assert data.FINGERPRINTS[data.fingerprint((train, labels, *SAMPLE[4:]))] == "sample"
    assert data.FINGERPRINTS[data.fingerprint(SAMPLE[:4])] == "sample"  # with a tenth held out
    assert data.fingerprint([np.asfortranarray(array) for array in SAMPLE]) == data.fingerprint(SAMPLE)
    x, y = np.arange(12, dtype=np.uint8).reshape(2, 2, 3), np.arange(2)
    variants = [(x, y), (x % 11, y), (x, y[::-1]), (x.reshape(2, 3, 2), y), (x, y[:, None]), (y, x), (x,), (x, y, y)]
    assert len({data.fingerprint(variant) for variant in variants}) == len(variants)


def test_figure_shows_the_first_eight_images_of_each_class_in_its_row(tmp_path, monkeypatch):
    figures, savefig = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure) or savefig(figure, path))
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
    assert [axis.get_ylabel() for axis in figures[0].axes if axis.get_ylabel()] == list(data.CLASS_NAMES)


# ---------------------------------------------------------------- Download


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine; the path of the URL says what it does, `asked` lists what it was asked for."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            served.asked.append(self.path)
            body = b"another file" if self.path == "/wrong" else ARCHIVE
            self.send_response(404 if self.path == "/missing" else 200)
            self.send_header("Content-Length", len(body))
            self.end_headers()
            self.wfile.write(body if self.path in ("/good", "/wrong") else body[:9000])
            time.sleep(2 if self.path == "/silent" else 0)

        def log_message(self, *_):
            pass

    def choose(*paths):
        ports = [1 if path == "dead" else served.server_port for path in paths]  # nothing listens on port 1
        urls = [f"http://127.0.0.1:{port}/{path}" for port, path in zip(ports, paths, strict=True)]
        monkeypatch.setattr(data, "URLS", urls)
        return urls[0]

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.choose, served.asked = choose, []
    served.cached = tmp_path / "datasets" / "cifar-10-batches-py-target_archive"
    threading.Thread(target=served.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setattr(data, "SHA256", hashlib.sha256(ARCHIVE).hexdigest())
    monkeypatch.setattr(data, "SILENCE", 1)
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))  # what KERAS_HOME sets at import
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield served
    served.shutdown()
    served.server_close()


FAILURES = {"dead": "Connection refused", "silent": "timed out", "wrong": "hash does not match", "missing": "404"}
FAILURES["broken"] = "only 9000 out of"


@pytest.mark.parametrize("failure", FAILURES)
def test_second_server_is_asked_if_the_first_fails_and_its_file_is_kept(server, failure):
    server.choose(failure, "good")
    asked = ["/good"] if failure == "dead" else [f"/{failure}", "/good"]
    assert_same(data.load_cifar10(), SAMPLE)
    assert data.download() == server.cached
    assert server.cached.read_bytes() == ARCHIVE
    assert server.asked == asked
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize(("first", "second"), [("wrong", "broken"), ("silent", "missing")])
def test_failed_download_is_one_line_with_both_reasons_and_the_ways_out(server, tmp_path, first, second):
    server.choose(first, second)
    with pytest.raises(SystemExit) as caught:
        data.main(["--out", str(tmp_path / "figures")])
    assert caught.value.code.isprintable()
    assert caught.value.code.startswith("error: CIFAR-10 could not be downloaded (127.0.0.1:")
    for words in (FAILURES[first], FAILURES[second], "cifar-10-python.tar.gz", "--data PATH", "--data sample"):
        assert words in caught.value.code
    assert socket.getdefaulttimeout() is None
    assert list((tmp_path / "figures").iterdir()) == []


def test_archive_left_by_keras_itself_is_used(server, monkeypatch):
    url = server.choose("good")

    def get_file(**arguments):
        assert arguments["file_hash"] == SHA256
        keras.utils.get_file(**arguments | {"origin": url, "file_hash": data.SHA256})
        raise InterruptedError  # Keras would go on to read the full data set from it

    monkeypatch.setattr("keras.src.datasets.cifar10.get_file", get_file)
    with pytest.raises(InterruptedError):
        keras.datasets.cifar10.load_data()
    assert_same(data.load_cifar10(), SAMPLE)
    assert server.asked == ["/good"]  # by Keras


def test_damaged_file_in_the_cache_is_fetched_again(server):
    server.choose("good")
    make(server.cached.parent, {server.cached.name: ARCHIVE[:-1]})
    assert_same(data.load_cifar10(), SAMPLE)
    assert server.asked == ["/good"]
    assert server.cached.read_bytes() == ARCHIVE


# ---------------------------------------------------------------- The command line and what all scripts share


def test_module_prints_versions_and_shapes_and_draws_the_training_images(tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(data, "plot_samples", lambda *arguments: drawn.append(arguments))
    monkeypatch.chdir(tmp_path)
    data.main(["--data", "sample"])
    versions, backend, *shapes, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"Keras {keras.__version__}, TensorFlow 2\.\d+\.\d+", versions)
    assert backend == "Backend tensorflow, image data format channels_last"
    promised = re.findall(r"^ +([xy]_\w+ .*|Eight .*)$", data.__doc__, re.MULTILINE)
    for full, here in (("45000", "1350"), ("5000", "150"), ("10000", "500")):
        promised = [line.replace(f"({full},", f"({here},") for line in promised]
    assert [*shapes, last] == promised
    (images, labels, path), *_ = drawn
    assert_same((images, labels), SAMPLE[:2])
    assert path.parent.is_dir()
    assert str(path) == "figures/samples.png"


def test_what_the_user_can_mend_is_one_line_and_status_1(tmp_path, monkeypatch):
    monkeypatch.chdir(make(tmp_path / "here", {"file": b""}))
    for arguments, words in (
        (["--data", "no\nwhere"], "there is no folder or file no where. Accepted: "),
        (["--data", "sample", "--out", "file"], "[Errno 17] File exists: 'file'"),
    ):
        with pytest.raises(SystemExit) as caught:
            data.main(arguments)
        assert caught.value.code.startswith(f"error: {words}")  # Python prints a text and exits with status 1
        assert caught.value.code.isprintable()


def test_unknown_flag_is_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as caught:
        data.main(["--date", "a\nb"])
    assert caught.value.code == 2
    assert re.fullmatch(r"error: unrecognized arguments: --date a b \(--help .*\)\n", capsys.readouterr().err)


def test_only_what_the_user_can_mend_loses_its_traceback_and_a_long_message_its_middle():
    with pytest.raises(ValueError, match="shapes differ"), data.errors_in_one_line():
        raise ValueError("shapes differ")
    assert data.one_line("a\n b\t\x1b[31mc" + "x" * 990) == "a b [31mc" + "x" * 990
    shortened = data.one_line(f"what failed {'x' * 2000} the cause")
    assert re.fullmatch("what failed x+ … x+ the cause", shortened)
    assert len(shortened) < 1000


def test_terminal_that_lacks_a_letter_shows_another_and_a_closed_one_nothing(tmp_path, monkeypatch, server):
    monkeypatch.setattr(data, "plot_samples", lambda images, labels, path: path.touch())  # it takes seconds
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    data.main(["--data", "sample", "--out", str(tmp_path / "Bäume")])
    sys.stdout.flush()
    assert sys.stdout.buffer.getvalue().endswith(b"B?ume/samples.png\n")
    monkeypatch.setattr(sys, "stdout", None)
    server.choose("good")
    data.main(["--out", str(tmp_path / "closed")])  # a download prints its progress
    sys.stdout.close()  # what stood in for it
    assert (tmp_path / "closed" / "samples.png").exists()


def test_network_is_drawn_below_the_home_folder_or_the_missing_packages_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    packages = ["pydot"]

    def plot_model(model, path, show_shapes, **_):
        if not packages:
            raise ImportError("You must install pydot")
        Path(path).write_text(model.name * show_shapes)

    monkeypatch.setattr(keras.utils, "plot_model", plot_model)
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)], name="small")
    data.draw_network(network, "~/new/folder")
    assert (tmp_path / "new" / "folder" / "small.png").read_text() == "small"
    assert capsys.readouterr().out == f"The network's graph: {tmp_path}/new/folder/small.png\n"
    packages.clear()
    data.draw_network(network, tmp_path)
    assert "pip install pydot" in capsys.readouterr().out


SCRIPT = """
import os, platform
platform.machine = lambda: "aarch64"
import data, keras
print(keras.config.backend(), keras.config.image_data_format(), keras.config.floatx(), keras.config.epsilon())
print("MPLBACKEND" in os.environ, "TF_ENABLE_ONEDNN_OPTS" in os.environ)
"""


def test_settings_left_behind_by_notebooks_and_other_projects_do_not_matter(tmp_path):
    settings = '{"image_data_format": "channels_first", "floatx": "float16", "epsilon": 1e-3, "backend": "jax"}'
    make(tmp_path / "home", {"keras.json": settings.encode()})
    environment = os.environ | {"KERAS_HOME": str(tmp_path / "home"), "KERAS_BACKEND": "jax", "PYTHONPATH": str(ROOT)}
    environment |= {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    environment.pop("TF_ENABLE_ONEDNN_OPTS", None)
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "tensorflow channels_last float32 1e-07\nFalse False\n", done.stderr
    on_x86 = platform.machine() in ("x86_64", "AMD64")  # elsewhere these kernels are slower
    assert (os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "1") == on_x86
