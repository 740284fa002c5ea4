"""Train one run with Lightning, or many as a sweep."""
