"""A Moon of our own: ground, light and camera, in torch, with its truth."""
