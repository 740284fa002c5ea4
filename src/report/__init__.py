"""Tables, figures and a page of finished and unfinished runs: `python -m src.report`."""
