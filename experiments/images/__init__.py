"""Image classifiers trained with one learning rate, with TempBalance on whole matrices, and on windows."""
