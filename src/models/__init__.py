"""The nets, their complexity, and activation checkpointing."""
