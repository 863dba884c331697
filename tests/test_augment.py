"""Step 2: random transformations, standardising and whitening, the training batches, the figures.

The oracles: the tutorial's own object, Keras's ImageDataGenerator, given the same keyword arguments; and plain NumPy in
float64, where ImageDataGenerator's float32 is too coarse or divides by almost nothing.
"""

import itertools
from pathlib import Path

import helpers
import keras
import numpy as np
import pytest
import tensorflow as tf
from matplotlib.figure import Figure
from scipy import stats

import augment
from data import DataError, UserError, load_cifar10

ImageDataGenerator = tf.keras.preprocessing.image.ImageDataGenerator

# It warns where a setting of its own overrides another, which a scheme may leave to it.
pytestmark = pytest.mark.filterwarnings("ignore:This ImageDataGenerator specifies:UserWarning")

UNCHANGED = {"featurewise_center": True}  # a scheme without transformations
# Every kind of transformation, and two different shifts, so that swapping them is noticed.
EVERYTHING = {
    "width_shift_range": 0.1,
    "height_shift_range": 6.0,
    "rotation_range": 40,
    "shear_range": 20,
    "zoom_range": 0.3,
    "horizontal_flip": True,
}
NAMES = ("theta", "tx", "ty", "shear", "zx", "zy", "flip_horizontal")


@pytest.fixture(scope="module")
def sample():
    return load_cifar10("sample")


@pytest.fixture(scope="module")
def small_images(sample):
    """6,001 images of 8×8×3 = 192 numbers: more than whitening takes at a time, and no multiple of that."""
    corners = [sample.x_train[:, top : top + 8, left : left + 8] for top in (0, 8, 16) for left in (0, 12)]
    return np.concatenate(corners)[:6001]


@pytest.fixture(scope="module")
def unseen(sample):
    return sample.x_test[:100, 24:, 24:]


def seed_pair(first, second=0):
    return tf.constant([first, second], tf.int64)


def drawn_by_us(count, scheme, size=32, seed=1):
    draws = augment.draw_transforms(count, scheme, size, seed_pair(seed))
    return {name: values.numpy().astype(float) for name, values in draws.items()}


def drawn_by_keras(count, scheme):
    generator = ImageDataGenerator(**augment.scheme_settings(scheme))
    np.random.seed(2)
    draws = [generator.get_random_transform((32, 32, 3)) for _ in range(count)]
    return {name: np.array([one[name] for one in draws], float) for name in NAMES}


# ---------------------------------------------------------------- Define: the schemes

# What schemes 1 to 3 are in the tutorial, and scheme 4 after the paper's crops of an image padded by 4. In this
# order: the largest shift (pixels), rotation, shear (degrees) and zoom; how the border is filled; the standardising.
WHITEN, SCALE = {"zca_whitening": True, "zca_epsilon": 1e-6}, {"featurewise_std_normalization": True}
SCHEMES = {
    1: (8, 0, 0, 0, "reflect", WHITEN),
    2: (3.2, 15, 0.2, 0.2, "nearest", WHITEN),
    3: (8, 0, 0, 0, "reflect", SCALE),
    4: (4, 0, 0, 0, "reflect", SCALE),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_scheme_draws_what_the_tutorial_says_and_half_the_images_are_flipped(scheme):
    draws = drawn_by_us(8000, scheme)
    shift, angle, shear, zoom = SCHEMES[scheme][:4]
    assert stats.binomtest(int(draws.pop("flip_horizontal").sum()), 8000).pvalue > 0.001
    middle, reach = (0, 0, 0, 0, 1, 1), (angle, shift, shift, shear, zoom, zoom)
    for (name, values), centre, limit in zip(draws.items(), middle, reach, strict=True):
        ends = [values.min() - centre, values.max() - centre]  # 8,000 draws come close to the ends of their range
        np.testing.assert_allclose(ends, [-limit, limit], atol=0.01 * limit, err_msg=name)
    assert (scheme == 4) == (set(draws["tx"]) == set(draws["ty"]) == set(range(-4, 5)))  # whole pixels


REFUSED = {
    "an unknown key": ("1", "exist"),
    "a keyword that no scheme has": ({"vertical_flip": True}, "vertical_flip"),
    "a pair": ({"zoom_range": (0.5, 1.0)}, "zoom_range"),
    "a number as a switch": ({"zca_whitening": 1}, "True or False"),
    "half a pixel": ({"cutout": 0.5}, "whole number"),
    "a negative range": ({"rotation_range": -15}, "0 or more"),
    "another fill": ({"fill_mode": "constant"}, "reflect"),
}


@pytest.mark.parametrize(("scheme", "word"), REFUSED.values(), ids=REFUSED)
def test_bad_scheme_is_refused_at_once_by_all_that_take_one(sample, scheme, word):
    images, labels = sample.x_train[:4], sample.y_train[:4]
    with pytest.raises(UserError, match=word):
        augment.training_batches(images, labels, scheme, 2, seed=0)
    with pytest.raises(UserError, match=word):
        augment.standardiser(images, scheme)


def test_unusable_images_and_labels_are_refused_before_anything_is_computed(sample):
    images, labels = sample.x_train[:4], sample.y_train[:4]
    with pytest.raises(DataError, match="uint8"):
        augment.standardiser(images / 255, 1)
    with pytest.raises(DataError, match="labels"):
        augment.training_batches(images, labels + 10, 1, 2, seed=0)
    with pytest.raises(UserError, match="square"):
        augment.training_batches(images[:, 1:], labels, 1, 2, seed=0)


# ---------------------------------------------------------------- Define: the pixels


def assert_pixels_of_keras(ours, images, draws, fill_mode):
    """ImageDataGenerator interpolates in float64; 0.002 of 255 is allowed."""
    generator = ImageDataGenerator(fill_mode=fill_mode)
    for i, image in enumerate(images):
        parameters = {name: values[i] for name, values in draws.items()}
        theirs = generator.apply_transform(image.astype("float32"), parameters)
        np.testing.assert_allclose(ours[i], theirs, rtol=0, atol=2e-3)


@pytest.mark.parametrize(("fill_mode", "side"), [("reflect", 32), ("nearest", 32), ("reflect", 15)])
def test_pixels_are_those_of_keras_far_beyond_the_schemes(sample, fill_mode, side):
    random, images = np.random.default_rng(0), sample.x_test[:150, :side, :side]
    limits = {"theta": 180, "tx": 40, "ty": 40, "shear": 40}  # past the edge, and round the corner once more
    draws = {name: random.uniform(-limit, limit, len(images)) for name, limit in limits.items()}
    draws |= {name: random.uniform(0.5, 2, len(images)) for name in ("zx", "zy")}
    draws["flip_horizontal"] = random.random(len(images)) < 0.5
    ours = augment.warp(images, augment.affine_matrices(**draws, size=side), fill_mode)
    assert_pixels_of_keras(ours, images, draws, fill_mode)


@pytest.mark.parametrize("scheme", [*SCHEMES, "EVERYTHING"])
def test_random_transform_does_to_the_pixels_what_it_draws(sample, scheme):
    images = sample.x_test[:40]
    fill_mode = "nearest" if scheme == "EVERYTHING" else SCHEMES[scheme][4]  # Keras's default is nearest
    scheme = EVERYTHING if scheme == "EVERYTHING" else scheme
    ours = augment.random_transform(images, scheme, seed=5)
    assert (ours.dtype, ours.shape) == (tf.float32, images.shape)
    assert_pixels_of_keras(ours, images, drawn_by_us(40, scheme, seed=5), fill_mode)


def test_cutout_hides_one_square_in_each_image_anywhere_and_nothing_else(sample):
    images = sample.x_train[:, :16, :16]
    uncut, cut = (augment.random_transform(images, scheme, seed=5).numpy() for scheme in (4, 5))
    hidden = (uncut != cut).any(-1)  # pixels are shifted by whole ones, so none was 127.5
    assert (cut[hidden] == 127.5).all()
    assert (hidden.sum((1, 2)) == 64).all()
    rows, columns = hidden.any(2), hidden.any(1)
    assert (rows.sum(1) == 8).all()  # 64 pixels in eight rows and eight columns: a square
    assert (columns.sum(1) == 8).all()
    other = (augment.random_transform(images, {"cutout": 8}, seed=6).numpy() == 127.5).all(-1)
    assert (other != hidden).any((1, 2)).mean() > 0.9  # another seed, other squares
    corners = np.unique(9 * rows.argmax(1) + columns.argmax(1), return_counts=True)[1]
    assert len(corners) == 9**2  # each of the places where it fits, as often as any other
    assert stats.chisquare(corners).pvalue > 0.001


# ---------------------------------------------------------------- Define: the random draws

ALONE = [{"zoom_range": 0.2}, {"height_shift_range": 0.25}, {"width_shift_range": 5}, {"horizontal_flip": True}]
LIMITS = [{"width_shift_range": limit} for limit in (0.9, 1.0, 1.5, 1, 0)]  # a share, pixels, pixels, none, none


@pytest.mark.parametrize("scheme", [*SCHEMES, EVERYTHING, *ALONE, *LIMITS], ids=str)
def test_draws_have_the_distributions_of_keras(scheme):
    ours, theirs = drawn_by_us(6000, scheme), drawn_by_keras(6000, scheme)
    for name in NAMES:
        ends, expected = ([values.min(), values.max()] for values in (ours[name], theirs[name]))
        np.testing.assert_allclose(ends, expected, rtol=0, atol=0.01 * np.ptp(expected), err_msg=name)
        assert stats.ks_2samp(ours[name], theirs[name], method="asymp").pvalue > 0.001, name


def test_shift_is_a_share_of_the_side_of_other_images_too():
    assert 3.9 < drawn_by_us(6000, 1, size=16)["tx"].max() <= 4


def test_draws_are_independent_of_each_other_and_from_image_to_image():
    """Between any two of them, and between an image and the next one, no correlation reaches 5 sigma."""
    draws = np.stack(list(drawn_by_us(8000, EVERYTHING).values()))
    correlations = np.corrcoef(np.concatenate([draws[:, :-1], draws[:, 1:]]))
    assert np.abs(correlations - np.eye(14)).max() < 5 / np.sqrt(8000)


# ---------------------------------------------------------------- Fit: standardising and whitening


def whitening_in_float64(fitted_on, epsilon=1e-6):
    """Return the channels' mean, and the whitening matrix from the singular values of the centred images.

    As ImageDataGenerator means it, but for directions without variance, which are left out.
    """
    mean = fitted_on.mean(axis=(0, 1, 2), dtype=np.float64)
    directions, singular, _ = np.linalg.svd((fitted_on - mean).reshape(len(fitted_on), -1).T, full_matrices=False)
    kept = singular > 1e-6 * max(singular.max(), 1)
    directions, singular = directions[:, kept], singular[kept]
    return mean, directions * (np.sqrt(len(fitted_on)) / (singular + epsilon)) @ directions.T


def by_keras(images, fitted_on, settings):
    generator = ImageDataGenerator(**settings, dtype="float64")  # in float32 its sums are off by more than ours
    generator.fit(fitted_on)
    return generator.standardize(images.astype("float64"))


STANDARDISING = {
    "nothing": ({"horizontal_flip": True}, {}),
    "centre": (UNCHANGED, UNCHANGED),
    "scale implies centre": (SCALE, SCALE),
    **{f"scheme {key}": (key, settings | UNCHANGED) for key, (*_, settings) in SCHEMES.items()},
    "whitening replaces scaling": (SCALE | {"zca_whitening": True}, WHITEN),
    "a large epsilon": (WHITEN | {"zca_epsilon": 100.0},) * 2,
}


@pytest.mark.parametrize(("scheme", "settings"), STANDARDISING.values(), ids=STANDARDISING)
def test_standardiser_does_what_keras_does_to_seen_and_unseen_images(small_images, unseen, scheme, settings):
    images = small_images[:1000]
    seen_and_unseen = np.concatenate([images[:100], unseen])
    ours = augment.standardiser(images, scheme)(seen_and_unseen)
    expected = by_keras(seen_and_unseen, images, settings)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=5e-4)  # the matrix product is in float32


def test_whitening_matrix_is_right_to_eight_digits(small_images):
    epsilon = 100.0  # large enough to matter
    images = small_images[:, :4, :4]
    mean, std = augment.channel_statistics(images)
    expected_mean, expected = whitening_in_float64(images, epsilon)
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-12)
    np.testing.assert_allclose(std, images.std(axis=(0, 1, 2), dtype=np.float64), rtol=1e-12)
    matrix = augment.zca_matrix(images, mean, epsilon)
    np.testing.assert_allclose(matrix, expected, rtol=0, atol=1e-8 * np.abs(expected).max())


FEW_DIRECTIONS = {
    "fewer images than numbers": lambda images: images[:100],
    "a black border": lambda images: np.pad(images[:500, 1:-1], ((0, 0), (1, 1), (0, 0), (0, 0))),
    "one colour": lambda images: np.full_like(images[:10], 127),
}


@pytest.mark.parametrize("choose", FEW_DIRECTIONS.values(), ids=FEW_DIRECTIONS)
def test_directions_without_variance_are_left_out_of_the_whitening(small_images, unseen, choose):
    """ImageDataGenerator divides some of them by their rounding error: unseen images then reach a million."""
    images = choose(small_images)
    mean, matrix = whitening_in_float64(images)
    for some in (images, unseen):
        expected = ((some - mean).reshape(len(some), -1) @ matrix).reshape(some.shape)
        ours = augment.standardiser(images, 1)(some)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * max(np.abs(expected).max(), 1))


def test_channel_that_never_changes_is_centred_but_not_scaled(small_images):
    images = small_images[:1000].copy()
    images[..., 1] = 127
    standardise, expected = augment.standardiser(images, 3), by_keras(images, images, SCALE)
    images[..., 1] = 128
    ours = np.asarray(standardise(images))
    np.testing.assert_array_equal(ours[..., 1], 1)
    np.testing.assert_allclose(ours[..., [0, 2]], expected[..., [0, 2]], rtol=1e-5, atol=1e-5)


def test_standardiser_is_frozen_float32_and_needs_no_code_of_ours(small_images, unseen, tmp_path, mixed_precision):
    """float16, which the rest of the model uses here, would be off by 0.01."""
    images = small_images[:1000]
    standardise = augment.standardiser(images, 1)
    model = keras.Sequential([keras.Input((8, 8, 3)), standardise, keras.layers.Flatten(), keras.layers.Dense(2)])
    assert len(model.trainable_weights) == 2  # those of the Dense layer
    assert model(unseen).dtype == tf.float16
    result = standardise(unseen, training=True)  # no image is augmented in here
    assert result.dtype == tf.float32
    expected = by_keras(unseen, images, WHITEN)
    np.testing.assert_allclose(result, expected, rtol=0, atol=5e-4)
    standardise.save(tmp_path / "standardiser.keras")
    loaded = keras.models.load_model(tmp_path / "standardiser.keras")
    assert all(type(layer).__module__.startswith("keras.") for layer in loaded.layers)  # it needs no code of ours
    np.testing.assert_array_equal(loaded(unseen), result)


# ---------------------------------------------------------------- Flow: the training batches


def epochs_of(count, steps, batches):
    """Return the first `count` epochs of `steps` batches each, as lists of (images, labels)."""
    taken = list(batches.take(steps * count).as_numpy_iterator())
    return [taken[start : start + steps] for start in range(0, len(taken), steps)]


@pytest.mark.parametrize(("count", "sizes"), [(50, [16, 16, 16, 2]), (48, [16, 16, 16]), (5, [5])])
def test_epoch_has_every_image_once_with_its_label_in_a_new_order(count, sizes):
    """All pixels of an image hold its number, and the label follows from it."""
    images = np.full((count, 4, 4, 3), np.arange(count)[:, None, None, None], np.uint8)
    labels = np.arange(count) * 7 % 10
    orders = [list(range(count))]  # the order without shuffling: no epoch may have it
    for seed in (0, 1):
        batches = augment.training_batches(images, labels[:, None], UNCHANGED, 16, seed)
        for epoch in epochs_of(3, len(sizes), batches):
            assert [(batch.shape, onehot.shape) for batch, onehot in epoch] == [((n, 4, 4, 3), (n, 10)) for n in sizes]
            pixels, onehots = (np.concatenate(arrays) for arrays in zip(*epoch, strict=True))
            assert pixels.dtype == onehots.dtype == np.float32
            order = pixels[:, 0, 0, 0].astype(int)
            assert sorted(order) == list(range(count))
            np.testing.assert_array_equal(pixels, images[order])
            np.testing.assert_array_equal(onehots, np.eye(10)[labels[order]])
            orders.append(list(order))
    assert all(a != b for a, b in itertools.combinations(orders, 2))


def test_transformations_differ_between_images_steps_epochs_and_seeds(sample):
    images, labels = np.stack([sample.x_test[0]] * 6), np.zeros(6, int)
    runs = [epochs_of(2, 2, augment.training_batches(images, labels, 1, 3, seed)) for seed in (0, 1)]
    seen = [image for run in runs for epoch in run for batch, _ in epoch for image in batch]
    assert len(seen) == 24
    assert all(np.abs(a - b).max() > 1 for a, b in itertools.combinations(seen, 2))


@pytest.mark.parametrize(("scheme", "seed"), [(2, 3), (5, 2**40)])
def test_batches_follow_from_seed_epoch_and_step_and_nothing_that_came_before(sample, scheme, seed):
    """From a later epoch on they are the same to the last bit, whatever other random numbers were drawn."""
    images, labels = sample.x_train[:40], sample.y_train[:40]
    whole = epochs_of(4, 3, augment.training_batches(images, labels, scheme, 16, seed))
    keras.utils.set_random_seed(99)
    later = augment.training_batches(images, labels, scheme, 16, seed, first_epoch=2)
    for batch, expected in zip(itertools.chain(*epochs_of(2, 3, later)), whole[2] + whole[3], strict=True):
        for array, other in zip(batch, expected, strict=True):
            np.testing.assert_array_equal(array, other)


# ---------------------------------------------------------------- The figures


def pictures_of(figure):
    """Return the image in each of the figure's axes."""
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes]


def test_script_draws_the_second_image_by_three_schemes_and_says_why_the_whitening_is_noisy(
    tmp_path, monkeypatch, sample
):
    figures = {}
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.update({Path(path).name: figure}))
    monkeypatch.setattr(augment, "standardiser", lambda _, scheme: {1: np.invert}[scheme])  # ours takes seconds
    augment.main(["--data", "sample", "--out", str(tmp_path)])
    assert list(figures) == ["augmentations.png", *(f"augmented_scheme{n}.png" for n in (1, 2, 4)), "whitening.png"]
    for scheme in (1, 2, 4):
        shown = np.stack(pictures_of(figures[f"augmented_scheme{scheme}.png"]))
        np.testing.assert_array_equal(shown[0], sample.x_train[1])
        expected = augment.random_transform(sample.x_train[[1] * 20], scheme, seed=0)
        assert np.abs(shown[1:] - expected).max() <= 0.5  # rounded to bytes, and not whitened
    rows = np.reshape(figures["augmentations.png"].axes, (-1, 8))
    for row, scheme in zip(rows, augment.ONE_BY_ONE, strict=True):
        expected = augment.random_transform(sample.x_train[[1] * 7], scheme, seed=0)
        assert np.abs(row[7].images[0].get_array() - expected[6]).max() <= 0.5
    shown = pictures_of(figures["whitening.png"])
    for image, inverted in zip(shown[:8], shown[8:], strict=True):
        np.testing.assert_allclose(inverted, (image.max() - image) / np.ptp(image), atol=1e-6)
    assert "noise" in figures["whitening.png"].axes[8].get_ylabel().lower()
    augment.plot_whitening(sample.x_train[:2], np.invert, 3072, tmp_path / "enough.png")
    assert "noise" not in figures["enough.png"].axes[2].get_ylabel().lower()
    augment.main(["--data", helpers.save_data(tmp_path / "one.npz", 1, 1), "--out", str(tmp_path)])
