"""``deeplab-fast doctor``."""

from __future__ import annotations

from deeplab_fast.commands.common import reported
from deeplab_fast.commands.options import Debug


def doctor_command(debug: Debug = False) -> None:
    """Tell what was built, what is used, and why not."""
    with reported("doctor", debug):
        from deeplab_fast import doctor

        doctor.show(doctor.examine())
