"""What is learned: LightningModules with their metrics."""
