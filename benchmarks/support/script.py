"""How a benchmark begins and ends."""

import signal
import sys
from collections.abc import Callable
from typing import TypeVar

from mask_ray import cli
from mask_ray.config import MaskRayError, Settings

S = TypeVar("S", bound=Settings)


def main(settings_class: type[S], benchmark: Callable[[S], None]) -> None:
    """Parse the flags and run; a mistake is one line and exit code 1 or 2."""
    settings = cli.parse(settings_class, sys.argv[1:])
    # However it is ended, what was started has to end too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        benchmark(settings)
    except MaskRayError as error:
        cli.fail(str(error), exit_code=1)
    except KeyboardInterrupt:
        cli.fail("stopped", exit_code=130)
