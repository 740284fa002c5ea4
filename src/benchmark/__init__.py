"""Speed and memory of training, next to what people usually write."""
