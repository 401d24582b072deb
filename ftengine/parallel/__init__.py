"""Several processes: how they meet and lose each other, and models, files and gradients divided over them."""
