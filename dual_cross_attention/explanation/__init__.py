"""What a model attends to: attention maps of images, how faithful they are, and matching regions of two images."""
