"""How a firmware model comes to be: recipe, augmentation, sampling, the loop, checkpoints."""
