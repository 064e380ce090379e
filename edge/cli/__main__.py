"""``python -m edge.cli`` is ``earshot-device``."""

from edge.cli.entry import main

if __name__ == "__main__":
    main()
