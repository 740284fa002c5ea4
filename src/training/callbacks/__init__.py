"""The callbacks of a run, one concern each."""
