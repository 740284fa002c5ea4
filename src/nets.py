"""Point from the old command to the new one."""

import sys

print("python -m src.nets is now python -m src.summary", file=sys.stderr)
sys.exit(2)
