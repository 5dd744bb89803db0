"""``python -m deeplab_fast``: the same as the command ``deeplab-fast``."""

from __future__ import annotations

from deeplab_fast.commands.app import main

if __name__ == "__main__":
    main()
