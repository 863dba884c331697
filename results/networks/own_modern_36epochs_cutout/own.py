# written for commit 878a890
import augment, data, train  # before Keras: they set it up
import keras
from keras import layers

keras.utils.set_random_seed(0)
images = data.load_cifar10()
arrays = train.training_and_validation(images)
settings = train.RECIPES["modern", "wrn"] | {"epochs": 36, "scheme": 5}

stack = [keras.Input(data.IMAGE_SHAPE), layers.Conv2D(24, 2), layers.Activation("gelu")]
for filters in (64, 256, 256):
    stack += [layers.Conv2D(filters, 3, padding="same", use_bias=False), layers.MaxPooling2D(2)]
    stack += [layers.BatchNormalization(), layers.Activation("gelu")]
    stack += [layers.Conv2D(filters, 3, padding="same", use_bias=False)]
    stack += [layers.BatchNormalization(), layers.Activation("gelu")]
stack += [layers.GlobalMaxPooling2D(), layers.Rescaling(1 / 8), layers.Dense(10, activation="softmax")]
network = keras.Sequential(stack, name="own")

model = train.assemble(augment.standardiser(arrays[0], settings["scheme"]), network)
history, run_dir = train.compile_and_train(model, "own", *arrays, settings)
train.evaluate_performance(model, history, run_dir, images.x_test, images.y_test)
train.look(model, images.x_test, images.y_test, run_dir)
