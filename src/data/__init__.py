"""Datasets, the training stream, and image transforms."""
