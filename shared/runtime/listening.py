"""What is said where a service cannot listen: whether the address is at fault, or the port."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from typing import Final

from shared.errors import short_repr
from shared.runtime.settings import SettingsError, variable

_OF_THE_PORT: Final = frozenset({errno.EADDRINUSE, errno.EACCES})


@contextlib.contextmanager
def host_faults_named(host: str) -> Iterator[None]:
    """Surrounds what resolves `host` and binds to it; an error of the port passes: the caller knows its setting.

    Raises:
        SettingsError: nothing can listen at `host`, whatever the port.
    """
    try:
        yield
    except UnicodeError:  # `a..b`, for example
        reason = "no host name"
    except socket.gaierror as error:
        reason = str(error.strerror)
    except OSError as error:
        if error.errno in _OF_THE_PORT:
            raise
        reason = os.strerror(error.errno or 0)
    else:
        return
    raise SettingsError(
        f"{variable('host')}: expected an address of this machine, or a name that leads to one "
        f"(found {short_repr(host)}: {reason})"
    )
