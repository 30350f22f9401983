"""Gives each elastic restart its own store prefix, so ranks never read stale addresses.

torchrun restarts all workers when one dies (`--max-restarts`), and since PyTorch 2.5 gives every attempt the same
store. It still holds the addresses of the previous attempt, and PyTorch's backends try to connect to them (PyTorch's
issue 135712). The attempt's number cannot be the prefix, since each node counts its own. So the ranks of an attempt
first agree on a random prefix, under which everything else is written.
"""

import os
import time
from datetime import timedelta
from typing import Any
from uuid import uuid4

from torch.distributed import PrefixStore, Store, TCPStore

from dual_cross_attention.data.loaders import PATIENCE as READING_PATIENCE
from dual_cross_attention.data.loaders import READING_ATTEMPTS

POLL = 0.05  # seconds
STARTUP_TIMEOUT = timedelta(minutes=10)
"""How long ranks wait for one that is slow to start."""
COLLECTIVE_TIMEOUT = timedelta(seconds=READING_ATTEMPTS * READING_PATIENCE) + STARTUP_TIMEOUT
"""How long a rank waits in a collective: longer than another may wait for its DataLoader workers."""


def process_group_options() -> dict[str, Any]:
    """Arguments of `init_process_group`: the timeout and, where workers may be restarted, a store with a prefix."""
    options = {"timeout": COLLECTIVE_TIMEOUT}
    if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0":
        return options
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or world_size == 1:
        return options
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False, timeout=STARTUP_TIMEOUT)
    prefix = agree_on_prefix(store, rank, world_size)
    return options | {"store": PrefixStore(prefix, store), "rank": rank, "world_size": world_size}


def agree_on_prefix(store: Store, rank: int, world_size: int) -> str:
    """A random prefix that all live ranks of an attempt get, and no other attempt has.

    Rank 0 chooses it. It cannot write it under a fixed key, where others could read that of a previous attempt. So each
    of the other ranks asks under a random name, and gets its answer under that name.

    Args:
        store: may hold keys of previous attempts.
        rank, world_size: this process, and the number of processes.

    Raises:
        torch.distributed.DistStoreError: rank 0 has not answered within the store's timeout.
    """
    own = uuid4().hex
    if rank:
        store.set(f"dcal/asks/{rank}", own)
        prefix = store.get(f"dcal/answer/{own}").decode()
        store.set(f"dcal/{prefix}/has_read/{rank}", "")
        return prefix
    others = set(range(1, world_size))
    while others:
        for other in list(others):
            if store.check([f"dcal/asks/{other}"]):  # may be of a dead rank: then the answer stays unread
                store.set(f"dcal/answer/{store.get(f'dcal/asks/{other}').decode()}", own)
            if store.check([f"dcal/{own}/has_read/{other}"]):
                others.remove(other)
        time.sleep(POLL)
    return own
