"""One recipe trained with several seeds: figures whose intervals cover the seed as well as the examples."""
