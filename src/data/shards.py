"""The old name of the command `python -m src.data.webdataset`."""

import sys

if __name__ == "__main__":
    print("python -m src.data.shards is now python -m src.data.webdataset", file=sys.stderr)
    sys.exit(2)
