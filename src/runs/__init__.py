"""Run directories: their files, names and locks. Needs the standard library and yaml only."""
