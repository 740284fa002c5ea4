"""Evaluation of trained nets: protocols, ensembles, and weights from elsewhere."""
