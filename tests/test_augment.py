"""Step 2: the transformed pixels, the random draws, the order of the batches, standardising and whitening.

The oracle is the tutorial's own object, Keras's ImageDataGenerator, wherever it is right; where it is not, or to be
independent of it, plain NumPy in float64.
"""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from matplotlib.image import imread
from oracle import image_data_generator
from scipy import stats

import augment
from data import load_cifar10

# It warns where a setting of its own overrides another, which our schemes may leave to it.
pytestmark = pytest.mark.filterwarnings("ignore:This ImageDataGenerator specifies:UserWarning")

UNCHANGED = {"featurewise_center": True}  # a scheme without transformations
# Every kind of transformation, and two different shifts, so that swapping them would be noticed.
EVERYTHING = {
    "width_shift_range": 0.1,
    "height_shift_range": 6.0,
    "rotation_range": 40,
    "shear_range": 20,
    "zoom_range": 0.3,
    "horizontal_flip": True,
}
SHAPE = (32, 32, 3)


@pytest.fixture(scope="module")
def sample():
    return load_cifar10("sample")


@pytest.fixture(scope="module")
def small_images(sample):
    """2,500 images of 8×8×3 = 192 numbers: more images than pixels, and neither a multiple of 1,024."""
    images = np.concatenate([sample.x_train, sample.x_val])
    corners = [images[:, top : top + 8, left : left + 8] for top in (0, 12) for left in (0, 12)]
    return np.ascontiguousarray(np.concatenate(corners)[:2500])


# ---------------------------------------------------------------- Schemes


def test_schemes_1_to_3_are_the_tutorials_table():
    assert augment.SCHEMES[1] == {
        "featurewise_center": True,
        "zca_whitening": True,
        "zca_epsilon": 1e-6,
        "width_shift_range": 0.25,
        "height_shift_range": 0.25,
        "fill_mode": "reflect",
        "horizontal_flip": True,
    }
    assert augment.SCHEMES[2] == {
        "featurewise_center": True,
        "zca_whitening": True,
        "zca_epsilon": 1e-6,
        "width_shift_range": 0.1,
        "height_shift_range": 0.1,
        "rotation_range": 15,
        "shear_range": 0.2,
        "zoom_range": 0.2,
        "fill_mode": "nearest",
        "horizontal_flip": True,
    }
    assert augment.SCHEMES[3] == {
        "featurewise_center": True,
        "featurewise_std_normalization": True,
        "width_shift_range": 0.25,
        "height_shift_range": 0.25,
        "fill_mode": "reflect",
        "horizontal_flip": True,
    }


@pytest.mark.parametrize("scheme", augment.SCHEMES)
def test_a_scheme_is_image_data_generators_own_keyword_arguments(scheme):
    generator = image_data_generator(scheme)
    assert isinstance(generator, tf.keras.preprocessing.image.ImageDataGenerator)
    for name, value in augment.SCHEMES[scheme].items():
        expected = [1 - value, 1 + value] if name == "zoom_range" else value
        assert getattr(generator, name) == expected, name


def assert_refused_everywhere(scheme, words):
    """Each function that takes a scheme must refuse this one at once, in one line that contains `words`."""
    images, labels = np.zeros((2, 8, 8, 3), np.uint8), np.zeros(2, int)
    for call in (
        lambda: augment.scheme_settings(scheme),
        lambda: augment.training_batches(images, labels, scheme, batch_size=2, seed=0),
        lambda: augment.random_transform(images, scheme, seed=0),
        lambda: augment.standardiser(images, scheme),
    ):
        with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as caught:
            call()
        assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("scheme", [7, "1", None])
def test_an_unknown_scheme_is_refused_with_those_that_there_are(scheme):
    assert_refused_everywhere(scheme, [repr(scheme), "1, 2, 3, 4"])


REFUSED = {
    "a vertical flip": ({"vertical_flip": True}, ["vertical_flip", *augment.KEYWORDS]),
    "shifts of the colours": ({"channel_shift_range": 20}, ["channel_shift_range", *augment.KEYWORDS]),
    "a misspelt name": ({"zoom": 0.2, "rotation_range": 15}, ["have zoom;", *augment.KEYWORDS]),
    "a list of shifts": ({"width_shift_range": [-4, 0, 4]}, ["width_shift_range", "[-4, 0, 4]", "a single number"]),
    "a pair of zooms": ({"zoom_range": (0.5, 1.0)}, ["zoom_range", "(0.5, 1.0)", "a single number"]),
    "a word as an angle": ({"rotation_range": "15"}, ["rotation_range", "'15'", "a single number"]),
    "no epsilon": ({"zca_epsilon": None}, ["zca_epsilon", "None", "a single number"]),
    "yes for a switch": ({"horizontal_flip": "yes"}, ["horizontal_flip", "'yes'", "True or False"]),
    "1 for a switch": ({"zca_whitening": 1}, ["zca_whitening", "1", "True or False"]),
    "a constant fill": ({"fill_mode": "constant"}, ["fill_mode", "'constant'", "'reflect' or 'nearest'"]),
    "a wrapped fill": ({"fill_mode": "wrap"}, ["fill_mode", "'wrap'", "'reflect' or 'nearest'"]),
}


@pytest.mark.parametrize("place", ["given as a dict", "in the table"])
@pytest.mark.parametrize(("settings", "words"), REFUSED.values(), ids=REFUSED)
def test_a_bad_setting_is_refused_at_once_in_one_line_that_says_what_is_accepted(settings, words, place, monkeypatch):
    scheme = augment.SCHEMES[3] | settings
    if place == "in the table":
        monkeypatch.setitem(augment.SCHEMES, "mine", scheme)
        scheme = "mine"
    assert_refused_everywhere(scheme, words)


def test_a_scheme_of_ones_own_in_the_table_is_used_by_its_name(sample, monkeypatch):
    monkeypatch.setitem(augment.SCHEMES, "mine", EVERYTHING)
    assert augment.scheme_settings("mine") == EVERYTHING
    images = sample.x_test[:8]
    ours, same = (augment.random_transform(images, scheme, seed=0) for scheme in ("mine", EVERYTHING))
    np.testing.assert_array_equal(ours, same)


# ---------------------------------------------------------------- The same pixels as ImageDataGenerator


def warp_by(images, parameters, fill_mode):
    """Transform image i by the i-th of `parameters`, dicts as ImageDataGenerator draws them."""
    names = ("theta", "tx", "ty", "shear", "zx", "zy", "flip_horizontal")
    columns = {name: np.array([float(one[name]) for one in parameters]) for name in names}
    return augment.warp(images, augment.affine_matrices(**columns, size=images.shape[1]), fill_mode).numpy()


def seed_pair(first, second=0):
    return tf.constant([first, second], tf.int64)


def assert_same_pixels(ours, images, parameters, generator):
    """Compare with ImageDataGenerator, which interpolates in float64, to 0.002 of 255."""
    theirs = [
        generator.apply_transform(image.astype("float32"), one) for image, one in zip(images, parameters, strict=True)
    ]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-3)


def only(count, **given):
    """Return affine_matrices' arguments for `count` images that change nothing but what is given."""
    settings = {"theta": 0, "tx": 0, "ty": 0, "shear": 0, "zx": 1, "zy": 1, "flip_horizontal": False} | given
    return {name: [value] * count for name, value in settings.items()} | {"size": 32}


@pytest.mark.parametrize("scheme", augment.SCHEMES)
def test_pixels_are_image_data_generators_for_what_it_draws(sample, scheme):
    generator, images = image_data_generator(scheme), sample.x_test[:100]
    np.random.seed(scheme)
    parameters = [generator.get_random_transform(SHAPE) for _ in images]
    fill_mode = augment.SCHEMES[scheme]["fill_mode"]
    assert_same_pixels(warp_by(images, parameters, fill_mode), images, parameters, generator)


@pytest.mark.parametrize("fill_mode", ["reflect", "nearest"])
def test_pixels_are_image_data_generators_far_beyond_the_schemes(sample, fill_mode):
    random, images = np.random.default_rng(0), sample.x_test[100:350]
    parameters = [
        {
            "theta": random.uniform(-180, 180),
            "tx": random.uniform(-40, 40),  # past the edge, and round the corner once more
            "ty": random.uniform(-40, 40),
            "shear": random.uniform(-40, 40),
            "zx": random.uniform(0.5, 2),
            "zy": random.uniform(0.5, 2),
            "flip_horizontal": random.random() < 0.5,
        }
        for _ in images
    ]
    generator = image_data_generator({"fill_mode": fill_mode})
    assert_same_pixels(warp_by(images, parameters, fill_mode), images, parameters, generator)


@pytest.mark.parametrize("scheme", [*augment.SCHEMES, EVERYTHING], ids=str)
def test_random_transform_applies_its_own_draws_as_image_data_generator_would(sample, scheme):
    images = sample.x_test[350:400]
    draws = augment.draw_transforms(len(images), scheme, 32, seed_pair(5))
    draws = {name: values.numpy() for name, values in draws.items()}
    parameters = [{name: values[i] for name, values in draws.items()} for i in range(len(images))]
    ours = augment.random_transform(images, scheme, seed=5).numpy()
    assert_same_pixels(ours, images, parameters, image_data_generator(scheme))


@pytest.mark.parametrize("fill_mode", ["reflect", "nearest"])
def test_no_transformation_leaves_every_pixel_as_it_was(sample, fill_mode):
    matrices = augment.affine_matrices(**only(20))
    np.testing.assert_array_equal(matrices, np.stack([np.eye(3)] * 20))
    np.testing.assert_array_equal(augment.warp(sample.x_test[:20], matrices, fill_mode), sample.x_test[:20])


def test_a_flip_mirrors_left_and_right(sample):
    flipped = augment.warp(sample.x_test[:20], augment.affine_matrices(**only(20, flip_horizontal=True)), "reflect")
    np.testing.assert_array_equal(flipped, sample.x_test[:20, :, ::-1])


@pytest.mark.parametrize(("fill_mode", "padding"), [("reflect", "symmetric"), ("nearest", "edge")])
def test_a_shift_by_whole_pixels_is_a_crop_of_the_padded_image(sample, fill_mode, padding):
    images = sample.x_test[:20]
    shifted = augment.warp(images, augment.affine_matrices(**only(20, tx=3, ty=-8)), fill_mode)
    padded = np.pad(images, ((0, 0), (8, 8), (8, 8), (0, 0)), mode=padding)
    np.testing.assert_array_equal(shifted, padded[:, 0:32, 11:43])  # tx to the right in x, ty upwards in y


# ---------------------------------------------------------------- The same distribution as ImageDataGenerator


def drawn_by_us(count, scheme, seed=1):
    return {
        name: values.numpy() for name, values in augment.draw_transforms(count, scheme, 32, seed_pair(seed)).items()
    }


def drawn_by_image_data_generator(count, scheme):
    generator = image_data_generator(scheme)
    np.random.seed(2)
    draws = [generator.get_random_transform(SHAPE) for _ in range(count)]
    return {name: np.array([one[name] for one in draws], float) for name in drawn_by_us(1, scheme)}


@pytest.mark.parametrize("scheme", [1, 2, 3, EVERYTHING], ids=str)
def test_the_continuous_draws_have_image_data_generators_distributions(scheme):
    ours, theirs = drawn_by_us(8000, scheme), drawn_by_image_data_generator(8000, scheme)
    for name in ("theta", "tx", "ty", "shear", "zx", "zy"):
        if np.ptp(theirs[name]) == 0:  # not part of this scheme
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
        else:
            assert stats.ks_2samp(ours[name], theirs[name]).pvalue > 0.001, name


def test_the_draws_fill_their_ranges_and_height_range_moves_x():
    """With 8,000 draws the extremes lie within 1 % of the ends of the range; height_shift_range is the one for tx."""
    ours = drawn_by_us(8000, EVERYTHING)
    for name, middle, reach in (
        ("theta", 0, 40),
        ("tx", 0, 6),
        ("ty", 0, 3.2),
        ("shear", 0, 20),
        ("zx", 1, 0.3),
        ("zy", 1, 0.3),
    ):
        distance = ours[name] - middle
        assert -reach * 1.0001 <= distance.min() < -0.99 * reach, name
        assert 0.99 * reach < distance.max() <= 1.0001 * reach, name


def test_a_shift_below_1_is_a_fraction_of_the_side_and_from_1_it_is_pixels():
    """As in ImageDataGenerator; and the whole number 1 is no shift at all."""
    for given, reach in (0.9, 28.8), (1.0, 1.0), (1.5, 1.5), (1, 0.0), (0, 0.0):
        shifts = drawn_by_us(8000, {"width_shift_range": given})["ty"]
        np.testing.assert_allclose([shifts.min(), shifts.max()], [-reach, reach], rtol=0.01)
        theirs = drawn_by_image_data_generator(8000, {"width_shift_range": given})["ty"]
        np.testing.assert_allclose([theirs.min(), theirs.max()], [-reach, reach], rtol=0.01)


def test_whole_pixel_shifts_have_image_data_generators_distribution():
    """An int k draws −(k−1) … k−1 with 0 twice as likely: in scheme 4 ten equal shares, of which 0 has two."""
    for name in ("tx", "ty"):
        ours, theirs = drawn_by_us(8000, 4)[name], drawn_by_image_data_generator(8000, 4)[name]
        values, our_counts = np.unique(ours, return_counts=True)
        np.testing.assert_array_equal(values, np.arange(-4, 5))
        their_counts = np.unique(theirs, return_counts=True)[1]
        expected = np.where(values == 0, 1600, 800)
        assert stats.chisquare(our_counts, expected).pvalue > 0.001
        assert stats.chi2_contingency([our_counts, their_counts]).pvalue > 0.001


def test_half_the_images_are_flipped_and_none_where_the_scheme_does_not():
    assert stats.binomtest(int(drawn_by_us(8000, 1)["flip_horizontal"].sum()), 8000).pvalue > 0.001
    assert not drawn_by_us(8000, UNCHANGED)["flip_horizontal"].any()


def test_all_draws_are_independent_of_each_other():
    """Between any two columns, and between an image and the next one, a correlation of 5 sigma would be a fault."""
    draws = np.stack([values.astype(float) for values in drawn_by_us(8000, EVERYTHING).values()])
    correlations = np.corrcoef(np.concatenate([draws[:, :-1], draws[:, 1:]]))
    assert np.abs(correlations - np.eye(14)).max() < 5 / np.sqrt(8000)


def test_every_image_of_a_batch_has_its_own_transformation(sample):
    for name, values in drawn_by_us(128, EVERYTHING).items():
        assert name == "flip_horizontal" or len(np.unique(values)) == 128, name
    copies = augment.random_transform(np.stack([sample.x_test[0]] * 16), 1, seed=0).numpy()
    assert all(not np.array_equal(a, b) for a, b in itertools.combinations(copies, 2))


@pytest.mark.parametrize("seed", [0, 3, -1, 2**40, seed_pair(3, 1), np.array([-3, 2**40])], ids=str)
def test_a_seed_reproduces_the_transformations_and_another_changes_them(sample, seed):
    images = sample.x_test[:8]
    first = augment.random_transform(images, 2, seed).numpy()
    tf.random.uniform([3])  # other random numbers in between must not matter
    np.testing.assert_array_equal(first, augment.random_transform(images, 2, seed))
    other = augment.random_transform(images, 2, 12345).numpy()
    assert all(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_whole_number_as_seed_is_a_pair_that_ends_in_0(sample):
    first, same, other = (
        augment.random_transform(sample.x_test[:8], 2, seed) for seed in (3, seed_pair(3), seed_pair(3, 1))
    )
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(("height", "width"), [(8, 16), (32, 31)])
def test_images_that_are_not_square_are_refused(height, width):
    with pytest.raises(ValueError, match=rf"\A[^\n]*square images, not {height}×{width}\Z"):
        augment.random_transform(np.zeros((2, height, width, 3), np.uint8), 1, seed=0)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_random_transform_returns_float32_of_the_same_shape_and_range(sample, dtype):
    images = sample.x_test[:, 8:24, 8:24][:64].astype(dtype)
    result = augment.random_transform(images, 2, seed=0)
    assert result.dtype == tf.float32
    assert result.shape == images.shape
    assert np.min(result) >= 0
    assert np.max(result) <= 255
    assert np.std(result) > 30  # of pictures, not of padding


def test_a_scheme_without_transformations_leaves_the_pixels_unchanged(sample):
    result = augment.random_transform(sample.x_test[:20], UNCHANGED, seed=0)
    np.testing.assert_array_equal(result, sample.x_test[:20])


# ---------------------------------------------------------------- The training batches


def numbered_images(count):
    """Return images (count, 4, 4, 3) whose pixels all hold the image's number, and labels that follow from it."""
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 4, 4, 3))
    return np.array(images), np.arange(count) * 7 % 10


def epochs_of(batches, steps, count):
    """Return the first `count` epochs of `steps` steps each, as lists of (images, labels) in NumPy."""
    taken = list(batches.take(steps * count).as_numpy_iterator())
    return [taken[start : start + steps] for start in range(0, len(taken), steps)]


def order_of(epoch):
    return [int(number) for images, _ in epoch for number in images[:, 0, 0, 0]]


def assert_same_batches(some, others):
    assert len(some) == len(others) > 0
    for (images, labels), (other_images, other_labels) in zip(some, others, strict=True):
        np.testing.assert_array_equal(images, other_images)
        np.testing.assert_array_equal(labels, other_labels)


@pytest.mark.parametrize(("count", "batch_size", "sizes"), [(50, 16, [16, 16, 16, 2]), (48, 16, [16] * 3), (5, 8, [5])])
def test_an_epoch_has_every_image_once_and_keeps_its_smaller_last_batch(count, batch_size, sizes):
    images, labels = numbered_images(count)
    batches = augment.training_batches(images, labels, UNCHANGED, batch_size, seed=0)
    for epoch in epochs_of(batches, len(sizes), 3):
        assert [len(batch) for batch, _ in epoch] == sizes
        assert sorted(order_of(epoch)) == list(range(count))


def test_batches_are_float32_pixels_with_the_one_hot_labels_of_their_images():
    images, labels = numbered_images(250)
    ((batch, onehot),) = epochs_of(augment.training_batches(images, labels, UNCHANGED, 250, seed=0), 1, 1)[0]
    assert (batch.dtype, onehot.dtype) == ("float32", "float32")
    assert (batch.shape, onehot.shape) == ((250, 4, 4, 3), (250, 10))
    chosen = batch[:, 0, 0, 0].astype(int)
    np.testing.assert_array_equal(batch, images[chosen])
    np.testing.assert_array_equal(onehot, np.eye(10)[labels[chosen]])


def test_the_order_differs_between_epochs_and_between_seeds():
    images, labels = numbered_images(50)
    orders = [
        order_of(epoch)
        for seed in (0, 1, 2)
        for epoch in epochs_of(augment.training_batches(images, labels, UNCHANGED, 16, seed), 4, 3)
    ]
    orders.append(list(range(50)))  # nor is any of them unshuffled
    assert all(a != b for a, b in itertools.combinations(orders, 2))


@pytest.mark.parametrize("seed", [0, 7, 2**40])
def test_order_and_transformations_follow_from_seed_epoch_and_step_by_a_fixed_rule(sample, seed):
    """A seed must keep its meaning when this code changes, so the rule is written out here. All numbers are int64:
    fold_in gives something else for an int32.
    """
    images, labels = sample.x_train[:40], sample.y_train[:40]
    batches = augment.training_batches(images, labels, 2, 16, seed, first_epoch=1).take(6).as_numpy_iterator()
    for epoch in (1, 2):
        order = tf.random.experimental.stateless_shuffle(tf.range(40), seed=seed_pair(seed, epoch)).numpy()
        epoch_seed = tf.random.fold_in(seed_pair(seed), np.int64(epoch))
        for step, chosen in enumerate([order[:16], order[16:32], order[32:]]):
            batch, onehot = next(batches)
            expected = augment.random_transform(images[chosen], 2, tf.random.fold_in(epoch_seed, np.int64(step)))
            np.testing.assert_allclose(batch, expected, rtol=0, atol=2e-3)
            np.testing.assert_array_equal(onehot, np.eye(10)[labels[chosen]])


def test_the_transformations_differ_between_images_steps_epochs_and_seeds(sample):
    images, labels = np.stack([sample.x_test[0]] * 8), np.zeros(8, int)
    seen = [
        image
        for seed in (0, 1)
        for epoch in epochs_of(augment.training_batches(images, labels, 1, 4, seed), 2, 2)
        for batch, _ in epoch
        for image in batch
    ]
    assert len(seen) == 32
    assert all(not np.array_equal(a, b) for a, b in itertools.combinations(seen, 2))


def test_training_from_a_later_epoch_sees_exactly_the_uninterrupted_batches(sample):
    images, labels = sample.x_train[:40], sample.y_train[:40]
    whole = epochs_of(augment.training_batches(images, labels, 2, 16, seed=3), 3, 4)
    for first_epoch in (1, 3):
        later = augment.training_batches(images, labels, 2, 16, seed=3, first_epoch=first_epoch)
        assert_same_batches(epochs_of(later, 3, 1)[0], whole[first_epoch])


@pytest.mark.parametrize("threads", [1, 7])
def test_batches_do_not_depend_on_threads_nor_on_other_random_numbers(sample, threads):
    images, labels = sample.x_train[:40], sample.y_train[:40]
    batches = augment.training_batches(images, labels, 2, 8, seed=3)
    (once,) = epochs_of(batches, 10, 1)
    keras.utils.set_random_seed(99)
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    assert_same_batches(epochs_of(batches.with_options(options), 10, 1)[0], once)


# ---------------------------------------------------------------- Standardising


def whitened_in_float64(images, fitted_on):
    """Whiten as ImageDataGenerator means to, but in float64: from the singular values of the centred images."""
    mean = fitted_on.mean(axis=(0, 1, 2), dtype=np.float64)
    rows = (fitted_on - mean).reshape(len(fitted_on), -1)
    directions, singular, _ = np.linalg.svd(rows.T, full_matrices=False)
    matrix = directions * (np.sqrt(len(rows)) / (singular + 1e-6)) @ directions.T
    return ((images - mean).reshape(len(images), -1) @ matrix).reshape(images.shape)


def by_image_data_generator(images, fitted_on, scheme, dtype="float32"):
    generator = image_data_generator(scheme)
    generator.dtype = dtype  # its default is float32
    generator.fit(fitted_on)
    return generator.standardize(images.astype(dtype))


STANDARDISING = {
    "nothing": {"horizontal_flip": True},
    "centre": {"featurewise_center": True},
    "scheme 3": 3,
    "scale implies centre": {"featurewise_std_normalization": True},
}


@pytest.mark.parametrize("scheme", STANDARDISING.values(), ids=STANDARDISING)
def test_centring_and_scaling_are_image_data_generators(small_images, sample, scheme):
    """ImageDataGenerator sums in float32, and its mean of 160,000 pixels is off by 0.01 of 255; in float64 it is not.

    The tolerance is 1e-4 of a standard deviation, which is 0.006 in pixels.
    """
    standardise, settings = augment.standardiser(small_images, scheme), augment.scheme_settings(scheme)
    unit = 1 if "featurewise_std_normalization" in settings else 63
    images = np.concatenate([small_images, sample.x_test[:50, :8, :8]])
    expected = by_image_data_generator(images, small_images, scheme, "float64")
    np.testing.assert_allclose(standardise(images), expected, rtol=0, atol=1e-4 * unit)
    expected = by_image_data_generator(images, small_images, scheme)
    np.testing.assert_allclose(standardise(images), expected, rtol=0, atol=1e-3 * unit)


WHITENING = {  # schemes 1 and 2 differ in their transformations only
    "scheme 1": 1,
    "whitening implies centre": {"zca_whitening": True},
    "whitening replaces scaling": {"featurewise_std_normalization": True, "zca_whitening": True},
}


@pytest.fixture(scope="module")
def whitened_exactly(small_images, sample):
    """Return seen and unseen images, and what whitening should make of them."""
    images = np.concatenate([small_images, sample.x_test[:50, :8, :8]])
    return images, whitened_in_float64(images, small_images)


@pytest.mark.parametrize("scheme", WHITENING.values(), ids=WHITENING)
def test_whitening_is_image_data_generators(small_images, whitened_exactly, scheme):
    """Of seen and unseen images. Whitened values reach 15; ImageDataGenerator works in float32 throughout, and both
    apply the matrix in float32: 2e-5 apart on seen images, twice that on others. 5e-4 leaves room for other machines.
    """
    images, expected = whitened_exactly
    ours = np.asarray(augment.standardiser(small_images, scheme)(images))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=5e-4)
    np.testing.assert_allclose(ours, by_image_data_generator(images, small_images, scheme), rtol=0, atol=5e-4)


def test_whitened_training_images_have_no_correlation_left(small_images):
    """The mean products of two whitened pixels are 1 for a pixel with itself, and else 0.

    These are moments about the channels' means, which is what ImageDataGenerator whitens, and not about each pixel's
    own mean: a pixel's mean after whitening need not be 0.
    """
    rows = np.asarray(augment.standardiser(small_images, 1)(small_images), float).reshape(len(small_images), -1)
    np.testing.assert_allclose(rows.T @ rows / len(rows), np.eye(192), atol=1e-4)


def test_the_whitening_matrix_is_right_to_nine_digits(small_images):
    """Blocks of float32 products lose nothing: against integer arithmetic on the pixels, which is exact.

    A symmetric positive matrix W with W·S·W = 1 is the only one: it is 1/sqrt(S).
    """
    rows = small_images.reshape(len(small_images), -1).astype(np.int64)
    count, pixels = rows.shape
    products, totals = rows.T @ rows, rows.sum(axis=0)
    channel_totals = np.tile(totals.reshape(-1, 3).sum(axis=0), pixels // 3)
    # S = mean (p − a)(q − b), times count·(count·64)², in whole numbers: a = channel_totals / (count·64)
    per_channel = count * pixels // 3
    scaled = products.astype(object) * per_channel**2
    scaled -= per_channel * (np.outer(totals.astype(object), channel_totals) + np.outer(channel_totals, totals))
    scaled += count * np.outer(channel_totals.astype(object), channel_totals)
    second_moments = (scaled / (count * per_channel**2)).astype(float)

    mean, std = augment.channel_statistics(small_images)
    matrix = augment.zca_matrix(small_images, mean, epsilon=0)
    np.testing.assert_allclose(matrix @ second_moments @ matrix, np.eye(pixels), atol=1e-9)
    np.testing.assert_allclose(matrix, matrix.T, rtol=0, atol=1e-12)
    assert np.linalg.eigvalsh(matrix).min() > 0
    np.testing.assert_allclose(mean, small_images.mean(axis=(0, 1, 2), dtype=np.float64), rtol=1e-13)
    np.testing.assert_allclose(std, small_images.std(axis=(0, 1, 2), dtype=np.float64), rtol=1e-13)


def test_epsilon_damps_the_directions_of_little_variance(small_images):
    """ImageDataGenerator divides by s + epsilon, s being singular values, sqrt(N) times the standard deviations."""
    mean, _ = augment.channel_statistics(small_images)
    plain = np.linalg.eigvalsh(augment.zca_matrix(small_images, mean, epsilon=0))
    damped = np.linalg.eigvalsh(augment.zca_matrix(small_images, mean, epsilon=100.0))
    np.testing.assert_allclose(1 / damped, 1 / plain + 100 / np.sqrt(2500), rtol=1e-9)


@pytest.mark.parametrize(("side", "count"), [(16, 200), pytest.param(32, 500, marks=pytest.mark.long)])
def test_with_fewer_images_than_pixels_unseen_images_stay_in_range(sample, side, count):
    """200 images of 768 numbers, or 500 of 3,072: unseen images are spread more than those it was fitted on, but only
    a few times more. ImageDataGenerator does not look at the other directions in this case, so the two agree.
    """
    images, others = sample.x_train[:count, :side, :side], sample.x_test[:, :side, :side]
    standardise = augment.standardiser(images, 1)
    seen, unseen = np.asarray(standardise(images)), np.asarray(standardise(others))
    assert np.isfinite(unseen).all()
    assert unseen.std() < 5 * seen.std()
    assert np.abs(unseen).max() < 5 * np.abs(seen).max()
    np.testing.assert_allclose(unseen, by_image_data_generator(others, images, 1), rtol=0, atol=5e-3)


def test_no_direction_without_variance_is_amplified(small_images):
    """Noise at right angles to all of 100 training images, which span 100 of 192 directions, whitens to nothing."""
    images = small_images[:100]
    mean = images.mean(axis=(0, 1, 2), dtype=np.float64)
    basis, _ = np.linalg.qr((images - mean).reshape(100, -1).T)
    noise = np.random.default_rng(0).normal(size=192) * 30
    strange = noise - basis @ (basis.T @ noise)
    assert strange.std() > 10
    whitened = augment.standardiser(images, 1)((strange.reshape(1, 8, 8, 3) + mean).astype("float32"))
    assert np.abs(whitened).max() < 1e-3


@pytest.mark.parametrize("case", ["pixels that never change", "images that repeat"])
def test_rounding_noise_is_not_amplified_as_image_data_generator_does(small_images, sample, case):
    if case == "images that repeat":
        images = np.concatenate([small_images[:100]] * 3)
    else:
        images = small_images.copy()
        images[:, [0, -1]] = 0  # black above and below
    unseen = sample.x_test[:100, 8:16, 8:16]
    ours, theirs = augment.standardiser(images, 1)(unseen), by_image_data_generator(unseen, images, 1)
    assert np.abs(ours).max() < 300
    assert np.abs(theirs).max() > 1e5  # this is the contrast: its float32 noise, divided by itself


@pytest.mark.parametrize("scheme", [1, 3])
@pytest.mark.parametrize("value", [0, 127, 255])
def test_images_of_one_colour_give_zeros(scheme, value):
    images = np.full((10, 8, 8, 3), value, np.uint8)
    np.testing.assert_array_equal(augment.standardiser(images, scheme)(images), np.zeros(images.shape))


def test_a_channel_that_never_changes_is_not_divided_by_next_to_nothing():
    images = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3)).astype(np.uint8)
    images[..., 1] = 127
    unseen = np.full((1, 8, 8, 3), 130, np.uint8)
    found, expected = np.asarray(augment.standardiser(images, 3)(unseen)), by_image_data_generator(unseen, images, 3)
    np.testing.assert_allclose(found[..., 1], 3)
    np.testing.assert_allclose(found[..., ::2], expected[..., ::2], rtol=1e-4, atol=1e-5)
    assert expected[..., 1].min() > 1e6


@pytest.mark.parametrize("count", [10, 77, 1001])
def test_images_that_hardly_vary_are_not_drowned_in_rounding_noise(count):
    """Black, but for two pixels that are 0 or 1: three directions (the third from pixels that differ from the mean)."""
    images = np.zeros((count, 8, 8, 3), np.uint8)
    for row, channel in (2, 1), (5, 0):
        images[:, row, 2, channel] = np.random.default_rng(row).integers(0, 2, count)
    mean, _ = augment.channel_statistics(images)
    matrix = augment.zca_matrix(images, mean, epsilon=1e-6)
    assert np.linalg.matrix_rank(matrix) <= 3
    assert np.abs(matrix).max() < 100


@pytest.mark.parametrize(
    "images", [np.zeros((4, 8, 8, 3), "float32"), np.zeros((4, 8, 8, 3), "int64"), np.zeros((8, 8, 3), "uint8")]
)
def test_the_standardiser_is_fitted_on_uint8_images_only(images):
    with pytest.raises(ValueError, match=r"must be uint8 \(N, H, W, C\).*got .*8, 8, 3\)"):
        augment.standardiser(images, 3)


@pytest.mark.parametrize("scheme", augment.SCHEMES)
def test_the_standardiser_is_frozen_layers_of_keras_itself(small_images, scheme):
    standardise = augment.standardiser(small_images, scheme)
    assert isinstance(standardise, keras.Sequential)
    assert standardise.trainable_weights == []
    assert all(type(layer).__module__.startswith("keras.") for layer in standardise.layers)
    # also as part of a model that trains
    network = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(2)])
    model = keras.Sequential([keras.Input((8, 8, 3)), standardise, network])
    assert len(model.trainable_weights) == 2


@pytest.mark.parametrize("scheme", [1, 3])
def test_it_stays_float32_under_mixed_precision(small_images, scheme, mixed_precision):
    assert keras.layers.Dense(1).compute_dtype == "float16"
    standardise = augment.standardiser(small_images, scheme)
    result = standardise(small_images[:100])
    assert result.dtype == tf.float32
    expected = by_image_data_generator(small_images[:100], small_images, scheme)
    np.testing.assert_allclose(result, expected, atol=5e-4)  # float16 would be off by 0.01
    model = keras.Sequential([keras.Input((8, 8, 3)), standardise, keras.layers.Flatten(), keras.layers.Dense(2)])
    assert model(small_images[:2]).dtype == tf.float16


@pytest.mark.parametrize("scheme", [1, 3])
def test_a_saved_standardiser_loads_and_gives_identical_output(small_images, scheme, tmp_path):
    standardise = augment.standardiser(small_images, scheme)
    standardise.save(tmp_path / "standardiser.keras")
    loaded = keras.models.load_model(tmp_path / "standardiser.keras")
    np.testing.assert_array_equal(loaded(small_images), standardise(small_images))


# ---------------------------------------------------------------- The figures


@pytest.fixture
def fitted(sample, monkeypatch):
    """Whitening is tested above and takes seconds to fit: the script only centres. Return what it asks for."""
    asked, centre = [], augment.standardiser(sample.x_train, UNCHANGED)
    monkeypatch.setattr(augment, "standardiser", lambda *arguments: asked.append(arguments) or centre)
    return asked


def test_the_script_draws_its_three_figures(sample, fitted, tmp_path, capsys):
    augment.main(["--data", "sample", "--out", str(tmp_path / "new" / "figures")])
    ((images, scheme),) = fitted
    np.testing.assert_array_equal(images, sample.x_train)
    assert scheme == 1
    printed = capsys.readouterr().out
    for name, (height, width) in {
        "augmentations.png": (1080, 1400),
        "augmented_scheme1.png": (480, 1050),
        "augmented_scheme2.png": (480, 1050),
        "whitening.png": (300, 1400),
    }.items():
        path = tmp_path / "new" / "figures" / name
        assert str(path) in printed
        picture = imread(path)[..., :3]
        assert picture.shape == (height, width, 3)
        assert picture.std() > 0.1


def test_rows_of_one_keyword_begin_with_the_original_and_differ_from_it_as_they_should(sample, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        augment, "plot_rows", lambda rows, path, labels, title="": drawn.update(zip(labels, rows, strict=True))
    )
    image = sample.x_train[1]
    augment.plot_one_by_one(image, tmp_path / "x.png")
    rows = {label.split("\n")[0]: row.astype(int) for label, row in drawn.items()}
    assert list(rows) == [
        "width_shift_range = 0.25",
        "width_shift_range = 9",
        "rotation_range = 15",
        "zoom_range = 0.2",
        "shear_range = 0.2",
        "shear_range = 12",
        "horizontal_flip = True",
    ]
    for label, (original, *others) in rows.items():
        np.testing.assert_array_equal(original, image)
        changed = [np.abs(other - image).mean() for other in others]
        assert (max(changed) < 2) == (label == "shear_range = 0.2")
    flips = [np.array_equal(other, image[:, ::-1]) for other in rows["horizontal_flip = True"][1:]]
    assert flips == [not np.array_equal(other, image) for other in rows["horizontal_flip = True"][1:]]
    assert any(flips)
    colours = {tuple(pixel) for pixel in image.reshape(-1, 3)}
    for label, sharp in (("width_shift_range = 9", True), ("width_shift_range = 0.25", False)):
        assert all(tuple(pixel) in colours for pixel in rows[label].reshape(-1, 3)) == sharp


def test_the_script_draws_a_single_training_image_too(sample, fitted, tmp_path):
    """Of two images one is for validation."""
    x, y = sample.x_test[:2], sample.y_test[:2]
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    augment.main(["--data", str(tmp_path / "mine.npz"), "--out", str(tmp_path)])
    assert imread(tmp_path / "augmented_scheme1.png").shape[:2] == (480, 1050)
    assert imread(tmp_path / "whitening.png").shape[:2] == (300, 350)


def test_the_script_says_in_one_line_what_is_wrong_with_its_data(tmp_path):
    with pytest.raises(SystemExit, match=r"\Aerror: [^\n]*nowhere[^\n]*\Z"):
        augment.main(["--data", str(tmp_path / "nowhere"), "--out", str(tmp_path)])


def test_the_script_says_in_one_line_that_its_folder_cannot_be_made(tmp_path):
    (tmp_path / "figures").touch()
    with pytest.raises(SystemExit, match=r"\Aerror: [^\n]*figures[^\n]*\Z"):
        augment.main(["--data", "sample", "--out", str(tmp_path / "figures")])
