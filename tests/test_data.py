"""data.py: what it reads, what it never opens, what it refuses, the download, the command line. Needs no network."""

import bz2
import hashlib
import io
import os
import pickle
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import keras
import numpy as np
import pytest
from matplotlib.figure import Figure

import data

BATCHES = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
ARCHIVE = Path(data.__file__).with_name("cifar-10-sample.tar.gz").read_bytes()
with tarfile.open(fileobj=io.BytesIO(ARCHIVE)) as sample_archive:
    FILES = {Path(m.name).name: sample_archive.extractfile(m).read() for m in sample_archive if m.isfile()}
SAMPLE = data.load_cifar10("sample")
IMAGES, LABELS = SAMPLE.x_test[:20], SAMPLE.y_test[:20]  # of the classes 0, 1, … 9, 0, 1, … 9


def tar_bytes(files):
    """Return a tar archive of {name: bytes}."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"some/where/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def npz_bytes(**changes):
    """Return an .npz file of 20 training and 20 test images; `changes` replaces arrays, None leaves one out."""
    arrays = {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES, "y_test": LABELS} | changes
    stream = io.BytesIO()
    np.savez(stream, **{name: array for name, array in arrays.items() if array is not None})
    return stream.getvalue()


def load_npz(path, **changes):
    path.write_bytes(npz_bytes(**changes))
    return data.load_cifar10(path)


def assert_same(left, right):
    for one, other in zip(left, right, strict=True):
        np.testing.assert_array_equal(one, other)


def test_sample_has_each_pixel_in_its_place_and_is_balanced():
    contents = {name: pickle.loads(raw, encoding="bytes") for name, raw in FILES.items()}
    y, x, channel = np.indices((32, 32, 3))
    images = [contents[name][b"data"][:, channel * 1024 + y * 32 + x] for name in BATCHES]
    labels = [contents[name][b"labels"] for name in BATCHES]
    train, train_labels = np.concatenate(images[:5]), np.concatenate(labels[:5])
    assert_same(SAMPLE, (train[:1350], train_labels[:1350], train[1350:], train_labels[1350:], images[5], labels[5]))
    assert [array.dtype for array in SAMPLE] == [np.uint8, np.int64] * 3
    assert all(array.flags.c_contiguous for array in SAMPLE)
    assert [np.bincount(labels).tolist() for labels in SAMPLE[1::2]] == [[135] * 10, [15] * 10, [50] * 10]
    assert contents["batches.meta"][b"label_names"] == [name.encode() for name in data.CLASS_NAMES]


def test_folder_parent_and_archive_give_the_same_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "parent" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, raw in FILES.items():
        (folder / name).write_bytes(raw)
    (tmp_path / "compressed").write_bytes(bz2.compress(tar_bytes(dict(sorted(FILES.items(), reverse=True))), 1))
    before = sorted(tmp_path.rglob("*"))
    for source in [folder, str(folder.parent), Path("~", "parent"), "~/compressed"]:
        assert_same(data.load_cifar10(source), SAMPLE)
    assert sorted(tmp_path.rglob("*")) == before


def test_npz_sorted_by_class_is_split_at_random_and_each_time_in_the_same_way(tmp_path):
    order = np.argsort(SAMPLE.y_test, kind="stable")  # fifty images of class 0, fifty of class 1, …
    loaded = load_npz(tmp_path / "a.npz", x_train=SAMPLE.x_test[order], y_train=SAMPLE.y_test[order, None])
    assert [len(array) for array in loaded] == [450, 450, 50, 50, 20, 20]
    assert loaded.y_train[:12].tolist() == [4, 8, 2, 6, 7, 1, 7, 4, 5, 3, 3, 4]
    numbers = {image.tobytes(): i for i, image in enumerate(SAMPLE.x_test)}
    found = [numbers[image.tobytes()] for image in np.concatenate([loaded.x_train, loaded.x_val])]
    assert sorted(found) == list(range(500))  # each image once, and with its label:
    assert_same([SAMPLE.y_test[found]], [np.concatenate([loaded.y_train, loaded.y_val])])
    assert_same(loaded[4:], (IMAGES, LABELS))
    assert len(load_npz(tmp_path / "a.npz", x_train=IMAGES[:2], y_train=LABELS[:2]).x_val) == 1  # never none
    assert len(load_npz(tmp_path / "a.npz", x_train=IMAGES[:1], y_train=LABELS[:1]).x_train) == 1


class Trap:
    def __reduce__(self):  # unpickling it makes a folder `trapped` in the current folder
        return os.mkdir, ("trapped",)


HOSTILE, OBJECTS = pickle.dumps(Trap()), np.array([Trap()] * 20)


def test_published_are_the_files_of_the_official_archive_and_of_the_sample_each_under_its_name():
    sample = {hashlib.sha256(raw).hexdigest(): name for name, raw in FILES.items() if name in BATCHES}
    official = {digest: name for digest, name in data.PUBLISHED.items() if digest not in sample}
    assert sample | official == data.PUBLISHED
    # Made from the files themselves: sha256sum data_batch_? test_batch | LC_ALL=C sort | sha256sum
    lines = "".join(sorted(f"{digest}  {name}\n" for digest, name in official.items()))
    assert hashlib.sha256(lines.encode()).hexdigest().startswith("d327bec963d1b90882236d04f78aa0d8")
    with pytest.raises(data.DataError, match=r"data_batch_2 .*SHA-256"):
        data.load_batch(FILES["data_batch_1"], "data_batch_2")


BAD_SOURCES = {  # the file's name: (its content, a word of the message)
    "hostile.tar": (tar_bytes(FILES | {"data_batch_1": HOSTILE}), "SHA-256"),
    "pickle.npz": (HOSTILE, "pickle"),
    "half.tar.gz": (ARCHIVE[: len(ARCHIVE) // 2], "ended"),
    "lacks.tar": (tar_bytes({name: FILES[name] for name in BATCHES[:5]}), "test_batch"),
    "objects.npz": (npz_bytes(y_test=OBJECTS), "Object arrays"),
    "lacks.npz": (npz_bytes(x_test=None), "x_test"),
    "nowhere": (None, "No such file"),
}


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_bad_source_is_refused_with_the_reason_and_what_is_accepted(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    pickle.loads(HOSTILE)
    os.rmdir("trapped")  # the trap works
    content, word = BAD_SOURCES[name]
    if content:
        Path(name).write_bytes(content)
    with pytest.raises(data.DataError, match=f"(?s){word}.*numpy.savez") as caught:
        data.load_cifar10(name)
    assert str(caught.value).isascii()
    assert not Path("trapped").exists()


# The floats are just below k/255, as after other arithmetic, so they must be rounded.
@pytest.mark.parametrize("given", [np.maximum(IMAGES / 255 - 1e-6, 0), IMAGES.transpose(0, 3, 1, 2)])
def test_advice_for_images_followed_word_for_word_leads_to_the_right_images(tmp_path, given):
    with pytest.raises(data.DataError, match=f"^x_test .*{given.dtype}") as caught:
        load_npz(tmp_path / "a.npz", x_test=given)
    floats, channels_first = re.search(r"floats.*?: (.*)\. Channels first: (.*)", str(caught.value)).groups()
    assert_same(eval(floats if given.dtype == float else channels_first, {"images": given}), IMAGES)


def test_good_arrays_pass_with_labels_as_one_row_of_int64_and_others_are_refused():
    for labels in ([0, 9, 4], np.array([[0], [9], [4]], np.uint8), np.array([0, 9, 4], ">u2")):
        images, checked = data.check_data(list(IMAGES[:3]), labels)
        assert_same([images, checked], [IMAGES[:3], [0, 9, 4]])
        assert (images.dtype, checked.dtype) == (np.uint8, np.int64)
    large = np.zeros((20, 96, 64, 3), np.uint8)
    assert data.check_images(large, shape=None) is large
    for images in (large, IMAGES[:0]):
        with pytest.raises(data.DataError, match="one or more"):
            data.check_images(images)
    for labels in (LABELS + 1, LABELS - 1, LABELS / 1, LABELS[:19]):
        with pytest.raises(data.DataError, match=r"^y_val must be .* numbers"):
            data.check_data(IMAGES, labels, "x_val", "y_val")


def test_fingerprint_is_that_of_recorded_runs_and_differs_if_a_value_a_shape_or_the_order_differs():
    recorded = "428eb47019bea07fa3e3e86972a5df8c1e65844096cce07f9b61000ab740355c"
    assert data.fingerprint(np.asfortranarray(array) for array in SAMPLE[:4]) == recorded
    x, y = np.arange(12, dtype=np.uint8).reshape(2, 2, 3), np.arange(2)
    variants = [(x, y), (x % 11, y), (x.reshape(2, 3, 2), y), (x, y[:, None]), (y, x), (x,)]
    assert len({data.fingerprint(variant) for variant in variants}) == len(variants)


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """The path of the archive in Keras's cache. Of two servers the first lacks it; the second has the sample's."""
    assert {data.SHA256, data.URLS[1]} < set(keras.datasets.cifar10.load_data.__code__.co_consts)  # Keras's own archive
    (tmp_path / "good").write_bytes(ARCHIVE)
    monkeypatch.setattr(data, "URLS", [(tmp_path / name).as_uri() for name in ("missing", "good")])
    monkeypatch.setattr(data, "SHA256", hashlib.sha256(ARCHIVE).hexdigest())
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))  # what KERAS_HOME sets at import
    return tmp_path / "datasets" / "cifar-10-batches-py-target_archive"


def test_second_server_is_asked_and_its_file_kept_unless_it_is_damaged(cached, tmp_path):
    assert_same(data.load_cifar10(), SAMPLE)
    cached.write_bytes(ARCHIVE[:-1])
    assert_same(data.load_cifar10(), SAMPLE)
    (tmp_path / "good").unlink()
    assert_same(data.load_cifar10(), SAMPLE)
    assert cached.read_bytes() == ARCHIVE


def test_download_that_fails_or_brings_another_file_ends_with_what_to_do(cached, tmp_path, capsys):
    (tmp_path / "good").write_bytes(ARCHIVE[:-1])
    with pytest.raises(SystemExit, match=r"^error: CIFAR-10 .*--data.*python.tar.gz.*sample"):
        data.main(["--out", str(tmp_path)])
    assert re.search(r"(?s)missing.*hash does not match", capsys.readouterr().out)


def test_figure_shows_the_first_eight_images_of_each_class_in_its_row(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure))
    pairs = [(k, i) for i in range(9) for k in range(9) if k != 6 or i < 2]  # class and number; none of class 9
    images = np.array([np.full((32, 32, 3), (20 * k + 10, 20 * i + 10, 128), np.uint8) for k, i in pairs])
    data.plot_samples(images, np.array(pairs)[:, 0], tmp_path / "figure.png")
    axes = np.array(figures[0].axes).reshape(10, 8)
    assert [row[0].get_ylabel() for row in axes] == list(data.CLASS_NAMES)
    for k, i in np.ndindex(axes.shape):
        shown = [image.get_array()[0, 0].tolist() for image in axes[k, i].get_images()]
        assert shown == ([[20 * k + 10, 20 * i + 10, 128]] if (k, i) in pairs else [])


def test_network_is_drawn_below_the_home_folder_or_the_missing_packages_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)], name="small")
    monkeypatch.setattr(keras.utils, "plot_model", lambda model, path, **how: path.write_text(f"{model.name} {how}"))
    data.draw_network(network, "~/new/folder")
    assert (tmp_path / "new" / "folder" / "small.png").read_text().startswith("small {'show_shapes': True")
    monkeypatch.setattr(keras.utils, "plot_model", lambda *_, **__: exec("raise ImportError"))
    data.draw_network(network, tmp_path)
    assert "pip install pydot" in capsys.readouterr().out


def test_module_prints_the_lines_it_promises_and_draws_the_training_images(tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(data, "plot_samples", lambda *arguments: drawn.append(arguments))
    monkeypatch.chdir(tmp_path)
    data.main(["--data", "sample"])
    promised = re.sub(r"\(\d+", "(N", "\n".join(re.findall(r"^ +([xy]_\w+ .*|Eight .*)$", data.__doc__, re.MULTILINE)))
    assert re.sub(r"\(\d+", "(N", capsys.readouterr().out).endswith(f"channels_last\n{promised}\n")
    assert_same(drawn[0][:2], SAMPLE[:2])
    assert drawn[0][2] == Path("figures", "samples.png")


def test_what_the_user_can_mend_is_one_line_and_a_mistake_in_the_code_keeps_its_traceback(tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"^error: [^\n]*no where[^\n]*$"):  # Python prints a text, the status is 1
        data.main(["--data", "no\nwhere", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"^error: [^\n]*exists"):
        data.main(["--data", "sample", "--out", __file__])
    with pytest.raises(SystemExit, match="2"):
        data.main(["--date", "a\nb"])
    assert re.fullmatch(r"error: [^\n]*--date[^\n]*\n", capsys.readouterr().err)
    with pytest.raises(ValueError, match="shapes differ"), data.errors_in_one_line():
        raise ValueError("shapes differ")
    assert re.fullmatch(r"what x+ \.\.\. x+ the cause", data.one_line(f"what {'x' * 2000} the\ncause"))


def test_settings_left_behind_by_notebooks_and_other_projects_do_not_matter(tmp_path):
    (tmp_path / "keras.json").write_text('{"image_data_format": "channels_first"}')
    script = "import data, keras; print(keras.config.backend(), keras.config.image_data_format())"
    environment = os.environ | {"KERAS_HOME": str(tmp_path), "KERAS_BACKEND": "jax", "MPLBACKEND": "absent"}
    command, folder = [sys.executable, "-c", script], Path(data.__file__).parent
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.stdout == "tensorflow channels_last\n", done.stderr
