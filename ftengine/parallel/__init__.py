"""Several processes: rendezvous and heartbeat, and models, files and gradients that are sharded over processes."""
