"""What a worker process of the data engine does first: it ends with the program it works for."""

from __future__ import annotations

import multiprocessing.connection
import os
import threading


def end_with_parent() -> None:
    """Ends this process when the one that started it has ended, however that ended."""

    def follow() -> None:
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
