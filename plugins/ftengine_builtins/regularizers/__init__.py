"""Regularizers: what keeps a model that is tuned on little data from learning it by heart."""
