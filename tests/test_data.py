"""Tests of data.py: what it reads, and what it must not let in. No network: a download comes from a server in here.

    pytest tests/test_data.py
    python tests/test_data.py --fuzz 20000 [--seed 1]      damage crafted files at random, as often as wanted

Everything hostile is made for real and, where it can run, first shown to run under plain pickle.loads.
"""

import argparse
import bz2
import copyreg
import gzip
import hashlib
import http.server
import json
import lzma
import os
import pickle
import pickletools
import random
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))  # for --fuzz; pytest knows it from pyproject.toml
from cifar_files import ROOT, batch_bytes, meta_bytes, python2_pickle, tar_bytes

import data

BATCH_NAMES = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
SQUEEZE = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lambda raw: lzma.compress(raw, preset=0)}
RANDOM_IMAGES = np.random.default_rng(1).integers(0, 256, (40, 32, 32, 3), np.uint8)


def crafted(sizes=(2, 2, 2, 2, 2, 1), images=RANDOM_IMAGES):
    """Return {name: content} of a whole small CIFAR-10; image k is images[k], its label k % 10."""
    ends = np.cumsum(sizes)
    parts = {name: range(end - size, end) for name, size, end in zip(BATCH_NAMES, sizes, ends, strict=True)}
    files = {name: batch_bytes(images[list(part)], [k % 10 for k in part]) for name, part in parts.items()}
    return {"batches.meta": meta_bytes(2), **files}


def write_folder(folder, files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def refusal(source):
    """Return the message with which `source` is refused."""
    with pytest.raises(data.DataError) as caught:
        data.load_cifar10(source)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_same(left, right):
    for one, other in zip(left, right, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(autouse=True)
def _no_hang():
    def give_up(*_):
        pytest.fail("still running after two minutes")  # not an Exception, so no `except Exception` swallows it

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture(scope="module")
def sample():
    return data.load_with_checksums("sample")


# ---------------------------------------------------------------- What is read


def test_sample_equals_what_tarfile_and_pickle_read_pixel_by_pixel(sample):
    with tarfile.open(ROOT / "cifar-10-sample.tar.gz") as archive:
        files = {Path(member.name).name: archive.extractfile(member).read() for member in archive if member.isreg()}
    batches = [pickle.loads(files[name], encoding="bytes") for name in BATCH_NAMES]
    y, x, channel = np.indices((32, 32, 3))
    images = [batch[b"data"][:, channel * 1024 + y * 32 + x] for batch in batches]
    labels = [batch[b"labels"] for batch in batches]
    train_images, train_labels = np.concatenate(images[:5]), np.concatenate(labels[:5])
    train = train_images[:1350], train_labels[:1350], train_images[1350:], train_labels[1350:]
    assert_same(sample[0], (*train, images[5], labels[5]))
    names = pickle.loads(files["batches.meta"], encoding="bytes")[b"label_names"]
    assert names == [name.encode() for name in data.CLASS_NAMES]
    assert sample[1] == {name: hashlib.md5(content).hexdigest() for name, content in files.items()}


def test_arrays_are_contiguous_writable_uint8_and_int64(sample):
    for name, array in sample[0]._asdict().items():
        assert array.dtype == (np.uint8 if name.startswith("x") else np.int64), name
        assert array.flags.c_contiguous, name
        assert array.flags.writeable, name


def test_sample_is_small_and_every_split_of_it_balanced(sample):
    for labels, count in ((sample[0].y_train, 135), (sample[0].y_val, 15), (sample[0].y_test, 50)):
        assert Counter(labels.tolist()) == dict.fromkeys(range(10), count)
    assert (ROOT / "cifar-10-sample.tar.gz").stat().st_size <= 6 * 2**20


def test_channels_rows_and_columns_keep_their_places(tmp_path):
    rows = np.zeros((10, 3072), np.uint8)  # by hand, byte by byte, as CIFAR-10's page describes them
    rows[0, :1024] = 255  # red
    rows[1, 1024:2048] = 255  # green
    rows[2, 2048:] = 255  # blue
    rows[3, 1024 + 32 * 5 + 7] = 99  # green, fifth row, seventh column, from zero
    files = crafted((0, 0, 0, 0, 11, 1))
    files["data_batch_1"] = python2_pickle({b"labels": list(range(10)), b"data": rows})
    images = data.load_cifar10(write_folder(tmp_path / "folder", files)).x_train
    for k, colour in enumerate(([255, 0, 0], [0, 255, 0], [0, 0, 255])):
        assert (images[k] == colour).all()
    assert np.argwhere(images[3]).tolist() == [[5, 7, 1]]
    assert images[3, 5, 7, 1] == 99


@pytest.mark.parametrize(
    ("sizes", "validation"), [((2, 2, 2, 2, 2, 1), 1), ((1, 9, 0, 7, 12, 6), 2), ((0, 0, 0, 0, 39, 1), 3)]
)
def test_last_tenth_of_the_training_images_in_file_order_is_for_validation(tmp_path, sizes, validation):
    loaded = data.load_cifar10(write_folder(tmp_path / "folder", crafted(sizes)))
    count, labels = sum(sizes[:5]), np.arange(40) % 10
    cut = count - validation
    images = RANDOM_IMAGES
    expected = images[:cut], labels[:cut], images[cut:count], labels[cut:count]
    assert_same(loaded, (*expected, images[count : count + sizes[5]], labels[count : count + sizes[5]]))


def test_onehot_has_a_one_at_the_label_and_zeros_elsewhere():
    onehot = data.get_onehot(np.array([3, 0, 9, 3], np.int64))
    assert onehot.dtype == np.float32
    assert onehot.tolist() == [[float(column == label) for column in range(10)] for label in (3, 0, 9, 3)]


def test_provenance_tells_the_sample_from_the_official_files_and_from_others(sample, tmp_path):
    by_name, by_path = data.provenance("sample", sample[1]), data.provenance(str(data.SAMPLE), sample[1])
    for record in (by_name, by_path):
        assert (record["official"], record["sample"], record["md5"]) == (False, True, sample[1])
        assert json.loads(json.dumps(record)) == record
    assert (by_name["source"], by_path["source"]) == ("sample", str(data.SAMPLE.resolve()))

    _, checksums = data.load_with_checksums(write_folder(tmp_path / "folder", crafted()))
    assert not data.provenance(tmp_path, checksums)["official"]
    assert not data.provenance(tmp_path, checksums)["sample"]

    official = data.provenance(None, dict(data.OFFICIAL_MD5))
    assert (official["source"], official["official"], official["sample"]) == (None, True, False)
    without_meta = {name: md5 for name, md5 in data.OFFICIAL_MD5.items() if name != "batches.meta"}
    assert not data.provenance(None, without_meta)["official"]
    for name in data.OFFICIAL_MD5:
        assert not data.provenance(None, data.OFFICIAL_MD5 | {name: "0" * 32})["official"], name


# ---------------------------------------------------------------- Sources


def tree(*folders):
    return {path: path.is_file() and path.read_bytes() for folder in folders for path in folder.rglob("*")}


def test_folder_parent_and_archives_give_the_same_and_nothing_is_written(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "parent" / "cifar-10-batches-py", crafted())
    sources = [folder, folder.parent, str(folder), str(folder.parent) + "/"]
    for end, squeeze in SQUEEZE.items():
        sources.append(tmp_path / f"crafted.tar{end}")
        sources[-1].write_bytes(squeeze(tar_bytes(crafted())))
    sources.append((tmp_path / "without an ending").resolve())
    sources[-1].write_bytes(bz2.compress(tar_bytes(crafted(), folder="./another/name")))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    before = tree(tmp_path)
    expected = data.load_cifar10(folder)
    for source in sources:
        assert_same(data.load_cifar10(source), expected)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("archive_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_as_people_make_them_are_read(tmp_path, archive_format):
    folder = write_folder(tmp_path / ("deep" * 20) / ("deeper" * 10), crafted() | {"readme.html": b"hello"})
    os.utime(folder / "test_batch", (1e9, 1e9 + 0.5))  # a fraction of a second goes to an extended (PAX) header
    with tarfile.open(tmp_path / "mine.tgz", "w:gz", format=archive_format) as archive:
        archive.add(folder.parent, "deep" * 20)  # longer than 100 characters: GNU and PAX write it to extra headers
    assert_same(data.load_cifar10(tmp_path / "mine.tgz"), data.load_cifar10(folder))


def test_compressed_archive_is_read_in_one_forward_pass(tmp_path, monkeypatch):
    class ForwardOnly(gzip.GzipFile):
        delivered = 0

        def read(self, size=-1):
            block = super().read(size)
            ForwardOnly.delivered += len(block)
            return block

        def seek(self, *_):
            raise AssertionError("seeking in a compressed file starts again from its front")

    plain = tar_bytes(crafted())
    (tmp_path / "crafted.tar.gz").write_bytes(gzip.compress(plain))
    monkeypatch.setattr(gzip, "open", ForwardOnly)
    assert len(data.load_cifar10(tmp_path / "crafted.tar.gz").x_train) == 9
    assert ForwardOnly.delivered == len(plain)


# ---------------------------------------------------------------- Damaged and mistaken input


def batch_with(**changes):
    """Return a batch file of two images with some entries replaced; None takes an entry away."""
    content = {"labels": [0, 1], "data": np.zeros((2, 3072), np.uint8)} | changes
    return python2_pickle({key.encode(): value for key, value in content.items() if value is not None})


TWO_IMAGES = batch_with()
SHAPE_OF_TWO = b"K\x02M\x00\x0c\x86"  # the tuple (2, 3072)
assert TWO_IMAGES.count(SHAPE_OF_TWO) == 1


def claiming(rows):
    """Return a batch file of two images whose array claims another number of rows, given as an instruction."""
    return TWO_IMAGES.replace(SHAPE_OF_TWO, rows + SHAPE_OF_TWO[2:])


BAD_BATCHES = {
    "3071 columns": (batch_with(data=np.zeros((2, 3071), np.uint8)), "misshapen: its data"),
    "floats": (batch_with(data=np.zeros((2, 3072), np.float64)), "misshapen: its data"),
    "signed bytes": (batch_with(data=np.zeros((2, 3072), np.int8)), "misshapen: its data"),
    "bytes instead of an array": (batch_with(data=b"0" * 6144), "misshapen: its data"),
    "no data": (batch_with(data=None), "misshapen: its data"),
    "one row too few bytes": (claiming(b"K\x03"), "need 9216 bytes, not 6144"),
    "a thousand million rows": (claiming(b"J" + struct.pack("<i", 10**9)), "images need 3072000000000 bytes"),
    "minus two rows": (claiming(b"J\xfe\xff\xff\xff"), "-2 images"),
    "False rows": (claiming(b"\x89"), "damaged"),
    "columns first": (TWO_IMAGES.replace(b"b\x89T", b"b\x88T"), "NEWTRUE"),
    "fewer labels than images": (batch_with(labels=[1]), "2 images, but 1 labels"),
    "more labels than images": (batch_with(labels=[1, 2, 3]), "2 images, but 3 labels"),
    "no labels": (batch_with(labels=None), "labels are not a list"),
    "label 10": (batch_with(labels=[0, 10]), "label 10"),
    "label -1": (batch_with(labels=[-1, 0]), "label -1"),
    "a word as label": (batch_with(labels=[0, b"cat"]), "not a list of whole numbers"),
    "an array as labels": (batch_with(labels=np.zeros((1, 2), np.uint8)), "labels are not a list"),
    "a list": (python2_pickle([1, 2]), "dictionary was expected, found list"),
    "cut off by one byte": (TWO_IMAGES[:-1], "not a complete pickle"),
    "cut off in the pixels": (TWO_IMAGES[:1000], "not a complete pickle"),
    "nothing at all": (b"", "not a complete pickle"),
    "a web page": (b"<!DOCTYPE html>\n<title>404</title>\n", "damaged"),
}


@pytest.mark.parametrize(("content", "reason"), BAD_BATCHES.values(), ids=BAD_BATCHES.keys())
def test_bad_batch_file_is_named_with_what_is_wrong(tmp_path, content, reason):
    message = refusal(write_folder(tmp_path / "folder", crafted() | {"data_batch_3": content}))
    assert "data_batch_3" in message
    assert reason in message


def test_no_rows_given_as_false_is_an_empty_batch(tmp_path):
    nothing = python2_pickle({b"labels": [], b"data": np.zeros((0, 3072), np.uint8)})
    files = crafted((0, 5, 5, 5, 5, 1)) | {"data_batch_1": nothing.replace(b"K\x00M\x00\x0c\x86", b"\x89M\x00\x0c\x86")}
    assert b"\x89M\x00\x0c" in files["data_batch_1"]
    assert len(data.load_cifar10(write_folder(tmp_path / "folder", files)).x_train) == 18


def test_other_class_names_are_refused(tmp_path):
    meta = crafted()["batches.meta"].replace(b"\x08airplane", b"\x08aquarium")
    folder = write_folder(tmp_path / "folder", crafted() | {"batches.meta": meta})
    assert "batches.meta names other classes" in refusal(folder)


@pytest.mark.parametrize("absent", BATCH_NAMES)
def test_missing_batch_is_named(tmp_path, absent):
    files = {name: content for name, content in crafted().items() if name != absent}
    assert f"{absent} missing" in refusal(write_folder(tmp_path / "folder", files))
    (tmp_path / "crafted.tar").write_bytes(tar_bytes(files))
    assert f"{absent} missing" in refusal(tmp_path / "crafted.tar")


@pytest.mark.parametrize("sizes", [(1, 2, 2, 2, 2, 1), (2, 2, 2, 2, 2, 0), (0, 0, 0, 0, 0, 0)])
def test_too_few_images_are_refused(tmp_path, sizes):
    counts = f"{sum(sizes[:5])} training and {sizes[5]} test images"
    assert counts in refusal(write_folder(tmp_path / "folder", crafted(sizes)))


@pytest.mark.parametrize("source", ["nowhere", "~nobody-of-this-name/x", "x" * 5000, "a\0b", "crafted.tar/inside"])
def test_path_that_is_not_there_is_named(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    Path("crafted.tar").write_bytes(b"")
    message = refusal(source)
    assert source in message
    assert "--data takes a folder, a tar archive, or the word sample" in message


GZIPPED = gzip.compress(tar_bytes(crafted()), mtime=0)
BAD_ARCHIVES = {
    "empty": b"",
    "a byte": b"\x1f",
    "not a tar": b"hello" * 1000,
    "a batch file": TWO_IMAGES,
    "text in gzip": gzip.compress(b"hello" * 1000),
    "an empty gzip": gzip.compress(b""),
    "the front of a tar": tar_bytes(crafted())[:-20000],
    "the front of a gzip": GZIPPED[: len(GZIPPED) // 2],
    "a gzip without its last byte": GZIPPED[:-1],
    "the front of a bzip2": bz2.compress(tar_bytes(crafted()))[:-10],
    "the front of an xz": lzma.compress(tar_bytes(crafted()))[:-10],
    "another tar": tar_bytes({"a": b"b"}),
}


@pytest.mark.parametrize("content", BAD_ARCHIVES.values(), ids=BAD_ARCHIVES.keys())
def test_bad_archive_is_refused_by_name(tmp_path, content):
    (tmp_path / "crafted.tar").write_bytes(content)
    assert "crafted.tar" in refusal(tmp_path / "crafted.tar")


def test_one_changed_pixel_is_noticed_by_the_checksum_of_gzip(tmp_path):
    stored = bytearray(gzip.compress(tar_bytes(crafted()), 0))  # level 0: pixels stand there as they are
    stored[stored.find(RANDOM_IMAGES[10, :, :, 0].tobytes())] ^= 1
    (tmp_path / "crafted.tar.gz").write_bytes(stored)
    assert "CRC check failed" in refusal(tmp_path / "crafted.tar.gz")


@pytest.mark.parametrize("kind", ["folder", "pipe", "endless", "dangling", "loop"])
def test_what_is_not_a_file_is_not_read(tmp_path, kind):
    folder = write_folder(tmp_path / "folder", crafted())
    for path in (folder / "data_batch_2", tmp_path / "source"):
        path.unlink(missing_ok=True)
        match kind:
            case "folder":
                path.mkdir()
            case "pipe":
                os.mkfifo(path)
            case _:
                path.symlink_to({"endless": "/dev/zero", "dangling": "nowhere", "loop": path.name}[kind])
    assert "data_batch_2 missing" in refusal(folder)
    assert "source" in refusal(tmp_path / "source")


# ---------------------------------------------------------------- Hostile pickles


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def text(value):
    return b"U" + bytes([len(value)]) + value  # the instruction SHORT_BINSTRING


def system(path, protocol):
    return pickle.dumps(Call(os.system, f"touch {path}"), protocol)


def arguments(path):
    return text(path.encode()) + text(b"w")  # those of open(path, "w"), without a tuple around them


def in_a_good_batch(evil):
    """Return a batch file in which the instructions `evil` make up one of the values."""
    good = batch_with(batch_label=b"placeholder")
    assert good.count(text(b"placeholder")) == 1
    return good.replace(text(b"placeholder"), evil)


OPEN = b"cbuiltins\nopen\n"
NUMPY = b"cnumpy\nndarray\n"
GETATTR = b"cbuiltins\ngetattr\ncbuiltins\n__import__\n" + text(b"io") + b"\x85R" + text(b"open") + b"\x86R"
# Name of the case: (what makes a pickle that creates the file w, what the message names).
RUNNING_PICKLES = {
    "os.system, protocol 0": (lambda w: system(w, 0), "'posix.system'"),
    "os.system, protocol 2": (lambda w: system(w, 2), "'posix.system'"),
    "os.system, protocol 3": (lambda w: system(w, 3), "'posix.system'"),
    "os.system, protocol 4": (lambda w: system(w, 4), "FRAME"),
    "os.system, protocol 5": (lambda w: system(w, 5), "FRAME"),
    "subprocess": (lambda w: pickle.dumps(Call(subprocess.call, ["touch", w]), 3), "'subprocess.call'"),
    "eval": (lambda w: pickle.dumps(Call(eval, f"open({w!r}, 'w')"), 2), "'__builtin__.eval'"),
    "exec": (lambda w: pickle.dumps(Call(exec, f"open({w!r}, 'w')"), 2), "'__builtin__.exec'"),
    "getattr": (lambda w: GETATTR + arguments(w) + b"\x86R.", "'builtins.getattr'"),
    "pickle in pickle": (lambda w: pickle.dumps(Call(pickle.loads, system(w, 4)), 3), "'_pickle.loads'"),
    "NumPy's own file writer": (lambda w: pickle.dumps(Call(np.save, w, 1), 2), "'numpy.save'"),
    "a call in a good batch": (lambda w: in_a_good_batch(OPEN + arguments(w) + b"\x86R"), "'builtins.open'"),
    "STACK_GLOBAL": (
        lambda w: b"\x80\x04" + text(b"builtins") + text(b"open") + b"\x93" + arguments(w) + b"\x86R.",
        "STACK_GLOBAL",
    ),
    "INST": (lambda w: b"(" + arguments(w) + b"ibuiltins\nopen\n.", "INST"),
    "OBJ": (lambda w: b"(" + OPEN + arguments(w) + b"o.", "'builtins.open'"),
    "EXT1": (lambda w: b"\x82\xf0" + arguments(w) + b"\x86R.", "EXT1"),
}


@pytest.mark.parametrize(("build", "culprit"), RUNNING_PICKLES.values(), ids=RUNNING_PICKLES.keys())
def test_hostile_pickle_is_refused_before_it_runs(tmp_path, build, culprit):
    copyreg.add_extension("builtins", "open", 0xF0)
    try:
        pickle.loads(build(str(tmp_path / "proof")), encoding="utf-8")
        evil = build(str(tmp_path / "marker"))
        in_folder = refusal(write_folder(tmp_path / "folder", crafted() | {"test_batch": evil}))
        (tmp_path / "crafted.tar").write_bytes(tar_bytes(crafted() | {"batches.meta": evil}))
        in_archive = refusal(tmp_path / "crafted.tar")
    finally:
        copyreg.remove_extension("builtins", "open", 0xF0)
    assert list(tmp_path.glob("proof*")), "this pickle is not as dangerous as the test says"
    assert not list(tmp_path.glob("marker*"))
    assert in_folder.startswith("test_batch is refused")
    assert in_archive.startswith("batches.meta is refused")
    assert culprit in in_folder
    assert culprit in in_archive


ATTRIBUTES = b"}(" + text(b"__class__") + NUMPY + b"u"  # {"__class__": numpy.ndarray}, for BUILD to set
STRANGE_PICKLES = {
    "another numpy import": (b"cnumpy.core.multiarray\nscalar\n.", "'numpy.core.multiarray.scalar'"),
    "numpy.load": (b"cnumpy\nload\n" + text(b"x") + b"\x85R.", "'numpy.load'"),
    "frombuffer": (b"cnumpy.core.numeric\n_frombuffer\n.", "_frombuffer"),
    "a dotted name": (b"cnumpy\nndarray.__class__\n.", "'numpy.ndarray.__class__'"),
    "an allowed name cut elsewhere": (b"c\nnumpy ndarray\n.", "numpy.ndarray"),
    "a name in a name": (b"cnumpy.core.multiarray _reconstruct\n\n.", "_reconstruct"),
    "OBJ": (b"(" + NUMPY + b"K\x00o.", "OBJ"),
    "NEWOBJ": (NUMPY + b"K\x00\x85\x81.", "NEWOBJ"),
    "NEWOBJ_EX": (NUMPY + b")}\x92.", "EMPTY_TUPLE"),
    "EXT4": (b"\x84\xff\xff\xff\x7f.", "EXT4"),
    "PERSID": (b"Pname\n.", "PERSID"),
    "BINPERSID": (text(b"name") + b"Q.", "BINPERSID"),
    "billion laughs": (b"]q\x00" + b"](h\x00h\x00eq\x00" * 30 + b".", "BINGET"),
    "billion laughs by DUP": (b"]" + b"2\x86" * 40 + b".", "DUP"),
    "Python 3's strings": (pickle.dumps({"data": 1}, 2), "BINUNICODE"),
    "a huge memo": (b"]r\xff\xff\xff\x7f.", "memo of 2147483647 entries"),
    "imports without end": (NUMPY * 1000 + b".", "GLOBAL more often"),
    "BUILD on an import": (NUMPY + b"}b.", "damaged"),
    "BUILD on a number": (b"K\x00}" + b"(" + text(b"real") + b"K\x01ub.", "damaged"),
    "BUILD with attributes": (NUMPY + b"K\x00\x85R" + ATTRIBUTES + b"b.", "dictionary was expected"),
    "BUILD with two states": (NUMPY + b"K\x00\x85RN" + ATTRIBUTES + b"\x86b.", "dictionary was expected"),
    "REDUCE of a number": (b"K\x00K\x00\x85R.", "damaged"),
    "a list as key": (b"}(]K\x00u.", "damaged"),
    "APPENDS to an import": (NUMPY + b"(K\x00e.", "damaged"),
    "SETITEMS on an import": (NUMPY + b"(K\x00K\x00u.", "damaged"),
    "an import in the state": (
        TWO_IMAGES.replace(b"K\x01" + SHAPE_OF_TWO, NUMPY + SHAPE_OF_TWO),
        "misshapen: its data",
    ),
}


@pytest.mark.parametrize(("content", "culprit"), STRANGE_PICKLES.values(), ids=STRANGE_PICKLES.keys())
def test_strange_pickle_is_refused(tmp_path, content, culprit):
    message = refusal(write_folder(tmp_path / "folder", crafted() | {"data_batch_1": content}))
    assert culprit in message
    assert "data_batch_1" in message


# ---------------------------------------------------------------- Hostile archives


def member(name, content=b"", size=None, kind=tarfile.REGTYPE, link=""):
    """Return one member of a tar archive: a header that may declare any size, and the content."""
    header = tarfile.TarInfo(name)
    header.type, header.linkname, header.size = kind, link, len(content) if size is None else size
    return header.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def extension(content, kind=tarfile.XHDTYPE):
    """Return a member that extends the header of the next one."""
    return member("x", content, kind=kind)


HOSTILE_MEMBERS = {
    "absolute path": (member("/tmp/data_batch_1", b"x"), "not a plain file inside it"),
    "path upwards": (member("cifar/../../data_batch_1", b"x"), "not a plain file inside it"),
    "symbolic link": (member("data_batch_1", kind=tarfile.SYMTYPE, link="/etc/passwd"), "not a plain file"),
    "hard link": (member("data_batch_1", kind=tarfile.LNKTYPE, link="test_batch"), "not a plain file"),
    "device": (member("data_batch_1", kind=tarfile.CHRTYPE), "not a plain file"),
    "pipe": (member("data_batch_1", kind=tarfile.FIFOTYPE), "not a plain file"),
    "sparse file": (member("data_batch_1", kind=tarfile.GNUTYPE_SPARSE), "not a plain file"),
    "unknown kind": (member("data_batch_1", kind=b"Z"), "not a plain file"),
    "a file twice": (member("other/test_batch", crafted()["test_batch"]), "holds test_batch twice"),
    "a name of two lines": (member("/two\nlines \udcff", b"x"), "not a plain file inside it"),
    "four gigabytes": (member("readme.html", size=2**32), "too large"),
    "a negative size": (member("readme.html", size=-1024), "for CIFAR-10"),
    "a negative size in an extension": (extension(b"14 size=-1024\n") + member("readme.html"), "for CIFAR-10"),
    "a path upwards in an extension": (extension(b"13 path=../x\n") + member("x"), "not a plain file inside it"),
    "extensions of extensions": (extension(b"y", kind=tarfile.GNUTYPE_LONGNAME) * 5000, "crafted.tar"),
    "a sparse file by extension": (extension(b"24 GNU.sparse.size=1024\n") + member("x"), "not a plain file"),
    "a hundred files too many": (b"".join(member(f"file {k}", b"x") for k in range(100)), "one file too many"),
}


@pytest.mark.parametrize(("front", "reason"), HOSTILE_MEMBERS.values(), ids=HOSTILE_MEMBERS.keys())
def test_hostile_archive_is_refused_and_writes_nothing(tmp_path, monkeypatch, front, reason):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    (tmp_path / "crafted.tar").write_bytes(front + tar_bytes(crafted()))
    before = tree(tmp_path)
    message = refusal(tmp_path / "crafted.tar")
    assert reason in message
    assert "crafted.tar" in message
    assert tree(tmp_path) == before


# ---------------------------------------------------------------- Memory
#
# One child process loads every bomb, and reports by how much its peak of memory grew and how it ended.

MEASURE = r"""
import json, re, resource, sys, time
import data

data.load_cifar10("sample")

def memory(field):
    return int(re.search(field + r":\s+(\d+) kB", open("/proc/self/status").read())[1]) / 1024

address_space = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + 4 * 2**30
resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))  # a failure hurts this process only
results = {}
for path in sys.argv[1:]:
    open("/proc/self/clear_refs", "w").write("5")  # from here on a new peak is measured
    before, start = memory("VmRSS"), time.monotonic()
    try:
        data.load_cifar10(path)
        outcome = "loaded"
    except BaseException as error:
        outcome = f"{type(error).__name__}: {error}"
    results[path] = (memory("VmHWM") - before, time.monotonic() - start, outcome)
print(json.dumps(results))
"""


def huge_dictionary_xz(content):
    """Return an xz file whose block header asks for a dictionary of 3 GB."""
    packed = bytearray(lzma.compress(content, check=lzma.CHECK_CRC32))
    size = (packed[12] + 1) * 4  # the block header follows the 12 bytes of the stream header
    assert packed[12 + 2 : 12 + 4] == b"\x21\x01"  # the only filter is LZMA2, with one byte of properties
    packed[12 + 4] = 39
    packed[12 + size - 4 : 12 + size] = struct.pack("<I", zlib.crc32(packed[12 : 12 + size - 4]))
    return bytes(packed)


def bombs():
    """Return {name: (files of a folder or bytes of an archive, part of the message)}; none is large itself."""
    zeros = gzip.compress(bytes(60 * 2**20), 1)  # gzip files may be joined, and unpack to their contents joined
    quadratic = b"2 " * 2**11  # every second byte begins a record whose name is all that follows
    records = b"".join(b"12 %06x=y\n" % k for k in range(2**20))
    sparse = extension(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n") + member("y", b"999999\n" + b"0\n" * 2**21)
    long_name = tarfile.GNUTYPE_LONGNAME
    unicode = b"a" * (60 * 2**20) + "\N{GRINNING FACE}".encode()  # four bytes a character, once it is read
    batches = {
        "memo": (b"\x80\x02}r\xff\xff\xff\x7f.", "memo of 2147483647"),
        "string of 2 GB": (b"\x80\x02T\xff\xff\xff\x7fabc.", "not a complete pickle"),
        "rows": BAD_BATCHES["a thousand million rows"],
        "marks": (b"(" * 60 * 2**20, "MARK more often"),
        "numbers": (b"(" + b"K\x00" * 30 * 2**20, "BININT1 more often"),
        "long number": (b"\x8b" + struct.pack("<i", 50 * 2**20) + b"\x01" * 50 * 2**20, "LONG4"),
        "long text": (b"X" + struct.pack("<I", len(unicode)) + unicode, "BINUNICODE"),
    }
    pieces = {  # to be compressed one by one
        "zeros": ([zeros] * 20, "unpacks to more"),
        "member of 4 GB": ([member("readme", size=2**32), *[zeros] * 20], "'readme' is too large"),
        "members of 60 MB": ([member("a", size=60 * 2**20), zeros] * 10, "'a' is too large"),
        "name of 180 MB": ([member("x", size=180 * 2**20, kind=long_name), *[zeros] * 4], "header of 188743680 bytes"),
        "name of 8 GB": ([member("x", size=2**33 - 1, kind=long_name), *[zeros] * 20], "header of 8589934591 bytes"),
        "one large extension": ([extension(quadratic * 2**8 + b"=")], "header of 1048577 bytes"),
        "many quadratic extensions": ([(extension(quadratic[:-2] + b"=") + member("y")) * 5000], "unpacks to more"),
        "a million records": ([extension(records, tarfile.XGLTYPE)], "header of 12582912 bytes"),
        "extensions of extensions": ([extension(records[:4092], tarfile.XGLTYPE) * 5000], "unpacks to more"),
        "sparse map": ([sparse], "unpacks to more"),
        "a million members": ([gzip.compress(member("tiny") * 2**14, 1)] * 61, "one file too many"),
    }
    archives = {
        name: (b"".join(part if part.startswith(b"\x1f\x8b") else gzip.compress(part, 1) for part in parts), reason)
        for name, (parts, reason) in pieces.items()
    }
    return batches, archives | {"dictionary of 3 GB": (huge_dictionary_xz(tar_bytes(crafted())), "loaded")}


@pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are read from /proc")
def test_bombs_are_refused_in_little_memory_and_time(tmp_path):
    batches, archives = bombs()
    for name, (content, _) in batches.items():
        write_folder(tmp_path / name, crafted() | {"data_batch_1": content})
    for name, (content, _) in archives.items():
        (tmp_path / name).write_bytes(content)
    with open(write_folder(tmp_path / "large file", crafted()) / "data_batch_1", "r+b") as file:
        file.truncate(2**33)  # takes no space: a file with a hole
    reasons = {name: reason for name, (_, reason) in (batches | archives).items()} | {"large file": "too many"}

    paths = [str(tmp_path / name) for name in reasons]
    command = [sys.executable, "-c", MEASURE, *paths]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=110).stdout
    results = json.loads(output.splitlines()[-1])
    for path, reason in zip(paths, reasons.values(), strict=True):
        grown, seconds, outcome = results[path]
        assert reason in outcome, path
        assert outcome.startswith(("DataError: ", "loaded")), path
        assert grown < 8 * data.MAX_FILE_BYTES / 2**20, path  # the long text needs 7 bytes for each of its own
        assert seconds < 30, path


# ---------------------------------------------------------------- Download


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine in place of CIFAR-10's; `answer` decides what it does, `requests` counts."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            served.requests += 1
            served.answer(self)

        def log_message(self, *_):
            pass

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.daemon_threads, served.requests = True, 0
    served.archive = gzip.compress(tar_bytes(crafted()), mtime=0)
    threading.Thread(target=served.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setattr(data, "URL", f"http://127.0.0.1:{served.server_port}/cifar-10-python.tar.gz")
    monkeypatch.setattr(data, "SHA256", hashlib.sha256(served.archive).hexdigest())
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))  # what KERAS_HOME sets at import
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    served.cached = tmp_path / "datasets" / "cifar-10-python.tar.gz"
    yield served
    served.shutdown()
    served.server_close()


def send(request, body, declared=None, status=200):
    request.send_response(status)
    request.send_header("Content-Length", len(body) if declared is None else declared)
    request.end_headers()
    request.wfile.write(body)


def fall_silent(request):
    send(request, b"x", declared=1000)
    time.sleep(5)


ANSWERS = {  # what the server does, and what the message says of it
    "another file": (lambda request: send(request, b"another file" * 1000), "hash does not match"),
    "an empty file": (lambda request: send(request, b""), "hash does not match"),
    "half the file, taken for whole": (lambda request: send(request, GZIPPED[:9000]), "hash does not match"),
    "the connection breaks": (lambda request: send(request, GZIPPED[:9000], declared=len(GZIPPED)), "only 9000 out of"),
    "not found": (lambda request: send(request, b"<html>\nno such page\n</html>", status=404), "404"),
    "server error": (lambda request: send(request, b"", status=500), "500"),
    "not HTTP": (lambda request: request.wfile.write(b"\x00\r\n\r\nhello"), "failed"),
    "nothing": (lambda request: None, "closed connection without response"),
    "silence": (fall_silent, "timed out"),
}


@pytest.mark.parametrize(("answer", "reason"), ANSWERS.values(), ids=ANSWERS.keys())
def test_failed_download_is_explained_and_leaves_nothing_taken_for_good(server, monkeypatch, answer, reason):
    set_timeout = socket.setdefaulttimeout
    monkeypatch.setattr(socket, "setdefaulttimeout", lambda seconds: set_timeout(seconds and seconds / 60))
    server.answer = answer
    message = refusal(None)
    assert reason in message
    assert server.requests == 1
    assert data.URL in message
    assert "--data PATH" in message
    assert "--data sample" in message
    assert socket.getdefaulttimeout() is None

    server.answer = lambda request: send(request, server.archive)
    assert len(data.load_cifar10().x_train) == 9
    assert server.requests == 2


def test_download_is_kept_and_checked_again_before_each_use(server, tmp_path):
    server.answer = lambda request: send(request, server.archive)
    expected = data.load_cifar10(write_folder(tmp_path / "folder", crafted()))
    assert_same(data.load_cifar10(), expected)
    assert_same(data.load_cifar10(), expected)
    assert server.requests == 1

    server.cached.write_bytes(server.archive[:-1])
    assert_same(data.load_cifar10(), expected)
    assert server.requests == 2

    damaged = bytearray(server.archive)
    damaged[5000] ^= 1
    server.cached.write_bytes(damaged)
    server.answer = lambda request: send(request, b"", status=503)
    assert "--data sample" in refusal(None)
    assert server.requests == 3


# ---------------------------------------------------------------- The command line


def test_module_prints_shapes_and_draws_the_sample(tmp_path, capsys):
    data.main(["--data", "sample", "--out", str(tmp_path / "new" / "folder")])
    path = tmp_path / "new" / "folder" / "samples.png"
    *shapes, last = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in shapes] == [
        "x_train (1350, 32, 32, 3) uint8 y_train (1350,) int64",
        "x_val (150, 32, 32, 3) uint8 y_val (150,) int64",
        "x_test (500, 32, 32, 3) uint8 y_test (500,) int64",
    ]
    assert last == f"Eight images of each class: {path}"
    picture = path.read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", picture[16:24])
    assert 500 < width < 4000
    assert 500 < height < 4000
    assert len(picture) > 100_000  # eighty photographs do not compress to less


def test_tiny_data_without_some_classes_are_drawn_too(tmp_path):
    files = crafted((2, 2, 2, 2, 2, 1), images=np.zeros((11, 32, 32, 3), np.uint8))
    data.main(["--data", str(write_folder(tmp_path / "folder", files)), "--out", str(tmp_path)])
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")


def test_bad_source_on_the_command_line_is_one_line_and_status_1(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        data.main(["--data", str(tmp_path / "nowhere"), "--out", str(tmp_path)])
    assert str(caught.value.code).startswith("error: ")  # Python prints a text to stderr and exits with status 1
    assert "\n" not in caught.value.code
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_output_folder_that_is_a_file_is_one_line_and_status_1(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"^error: .*File exists.*file'$"):
        data.main(["--data", "sample", "--out", str(tmp_path / "file")])


def test_no_network_and_no_cache_is_one_line_and_status_1(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        proxy = f"http://127.0.0.1:{closed.getsockname()[1]}"
        environment = {key: value for key, value in os.environ.items() if key.lower() != "no_proxy"}
        environment |= {"https_proxy": proxy, "HTTPS_PROXY": proxy, "KERAS_HOME": str(tmp_path)}
        command = [sys.executable, "data.py", "--out", str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1
    assert len(errors) == 1
    assert "--data sample" in errors[0]
    assert "Traceback" not in done.stderr + done.stdout
    assert not list(tmp_path.rglob("*cifar*"))


# ---------------------------------------------------------------- Damage at random

FUZZ_CASES = 1500
FLAT = np.full((11, 32, 32, 3), 7, np.uint8)  # one colour, so that a compressed archive is mostly structure
FUZZED_FILES = crafted(images=FLAT)
PIXELS = FLAT[:2].tobytes()
INTERESTING = [
    b"\x00",
    b"\xff",
    b"\xff\xff\xff\x7f",
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x80",
    b"cposix\nsystem\n",
    NUMPY,
]
INTERESTING += [b"0000000", b"7777777", b"99 path=../x\n", b"20 size=99999999999\n", b"x", b"g", b"L", b"K", b"S"]
INTERESTING += [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]


def damage(generator, content):
    """Return `content` (bytes) after one to four random changes, seldom inside the pixels."""
    content = bytearray(content)
    for _ in range(generator.randint(1, 4)):
        pixels = content.find(PIXELS)
        position = generator.randrange(len(content) + 1)
        if 0 <= pixels <= position < pixels + len(PIXELS) and generator.random() < 0.9:
            position = generator.choice([generator.randrange(pixels + 1), min(len(content), pixels + len(PIXELS))])
        length = generator.choice([1, 1, 2, 4, 16, 512])
        elsewhere = generator.randrange(len(content) + 1)
        match generator.choice(["flip", "overwrite", "interesting", "delete", "insert", "splice", "truncate"]):
            case "flip" if position < len(content):
                content[position] ^= 1 << generator.randrange(8)
            case "overwrite":
                content[position : position + length] = generator.randbytes(length)
            case "interesting":
                new = generator.choice(INTERESTING)
                content[position : position + len(new)] = new
            case "delete":
                del content[position : position + length]
            case "insert":
                content[position:position] = generator.choice(INTERESTING) * generator.choice([1, 1, 2, 100])
            case "splice":
                content[position : position + length] = content[elsewhere : elsewhere + length]
            case "truncate" if generator.random() < 0.2:
                del content[position:]
    return bytes(content)


def damage_headers(generator, archive):
    """Return the tar `archive` with changes in its headers, whose checksums are right again afterwards."""
    archive = bytearray(archive)
    headers = [k for k in range(0, len(archive), 512) if archive[k + 257 : k + 262] == b"ustar"]
    for start in generator.sample(headers, generator.randint(1, 3)):
        field, size = generator.choice([(0, 100), (124, 12), (124, 12), (156, 1), (157, 100), (345, 155), (482, 13)])
        new = generator.choice([*INTERESTING, generator.randbytes(size), b"%011o\0" % generator.randrange(2**33)])
        archive[start + field : start + field + size] = new[:size].ljust(size, b"\0")
        archive[start + 148 : start + 156] = b" " * 8  # the checksum counts its own field as blanks
        archive[start + 148 : start + 156] = b"%06o\0 " % sum(archive[start : start + 512])
    return bytes(archive)


def run_damaged(folder, generator):
    """Damage one file or archive in `folder` and load it; return whether it was still valid."""
    source = folder / "archive"
    target = generator.choice(["batch", "batch", "archive", "headers", "compressed"])
    name = generator.choice(list(FUZZED_FILES))
    files = dict(FUZZED_FILES)
    if target == "batch" or generator.random() < 0.1:
        files[name] = damage(generator, files[name])
    if target == "batch":
        source = folder / "files"
        (source / name).write_bytes(files[name])
    else:
        archive = tar_bytes(files)
        if target == "archive":
            archive = damage(generator, archive)
        if target == "headers":
            archive = damage_headers(generator, archive)
        archive = generator.choice(list(SQUEEZE.values()))(archive)
        source.write_bytes(damage(generator, archive) if target == "compressed" else archive)
    message = loaded = None
    try:
        loaded = data.load_cifar10(source)
    except data.DataError as error:
        message = str(error)
    if target == "batch":
        (source / name).write_bytes(FUZZED_FILES[name])
    if loaded is None:
        assert message
        assert "\n" not in message
        return False
    for images, labels in (loaded[:2], loaded[2:4], loaded[4:]):
        assert images.dtype == np.uint8
        assert images.shape == (len(labels), 32, 32, 3)
        assert images.flags.c_contiguous
        assert labels.dtype == np.int64
        assert labels.ndim == 1
        assert set(labels.tolist()) <= set(range(10))
    return True


def fuzz(folder, cases, seed):
    """Run `cases` cases; return how many were loaded, how many refused, and the longest time of one in seconds."""
    write_folder(folder / "files", FUZZED_FILES)
    outcomes, slowest = Counter(), 0
    for case in range(cases):
        start = time.monotonic()
        try:
            outcomes[run_damaged(folder, random.Random(f"{seed} {case}"))] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, case {case}: {error!r}") from error
        slowest = max(slowest, time.monotonic() - start)
    return outcomes[True], outcomes[False], slowest


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # pickletools warns of damaged text
def test_files_damaged_at_random_are_loaded_or_refused(tmp_path):
    loaded, refused, slowest = fuzz(tmp_path, FUZZ_CASES, seed=0)
    assert loaded > FUZZ_CASES / 20  # else the damage is too coarse to reach what comes after the first checks
    assert refused > FUZZ_CASES / 20
    assert slowest < 20


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Damage crafted files at random and load them.")
    parser.add_argument("--fuzz", type=int, default=FUZZ_CASES, metavar="CASES")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        loaded, refused, slowest = fuzz(Path(folder), options.fuzz, options.seed)
    print(f"{options.fuzz} cases, seed {options.seed}: {loaded} loaded, {refused} refused, slowest {slowest:.2f} s")
