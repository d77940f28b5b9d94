"""Image preprocessing, augmentation and mixing, as TensorFlow functions."""
