"""Does the error bar hold: the mean of alpha_se over many draws against how much alpha really moves between them."""
