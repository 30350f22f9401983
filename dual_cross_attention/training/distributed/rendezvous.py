"""Where the processes of a launch meet, so that those of a restart do not look for the dead.

torchrun restarts all workers when one dies (`--max-restarts`), and since PyTorch 2.5 lends every attempt the same
store. There, the addresses of the attempt before are still written, and PyTorch's backends connect to them in vain
(PyTorch's issue 135712). The number of the attempt is no help: each node counts its own. So the processes of an attempt
agree on a name of their own first, under which everything else is written.
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
PATIENCE = timedelta(minutes=10)  # for processes that take long to start
WAITING = timedelta(seconds=READING_ATTEMPTS * READING_PATIENCE) + PATIENCE
"""How long a process waits for the others: longer than one may wait for those that read its images."""


def meeting_point() -> dict[str, Any]:
    """Arguments of `init_process_group`: how long to wait for one another and, where processes are restarted, where."""
    waiting = {"timeout": WAITING}
    if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0":
        return waiting
    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or processes == 1:
        return waiting
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False, timeout=PATIENCE)
    return waiting | {"store": PrefixStore(agree(store, rank, processes), store), "rank": rank, "world_size": processes}


def agree(store: Store, rank: int, processes: int) -> str:
    """A name that the living processes of an attempt share, and no other attempt does.

    The first one invents it. It must not just write it down, since the others could read that of an attempt before: so
    each of them asks under a name of its own, and is answered under that.

    Args:
        store: which earlier attempts have written to.
        rank, processes: this process, and how many there are.

    Raises:
        torch.distributed.DistStoreError: the first process has not answered in the store's time.
    """
    own = uuid4().hex
    if rank:
        store.set(f"dcal/asks/{rank}", own)
        name = store.get(f"dcal/answer/{own}").decode()
        store.set(f"dcal/{name}/has_read/{rank}", "")
        return name
    others = set(range(1, processes))
    while others:
        for other in list(others):
            if store.check([f"dcal/asks/{other}"]):  # maybe of one that is dead: its answer stays unread
                store.set(f"dcal/answer/{store.get(f'dcal/asks/{other}').decode()}", own)
            if store.check([f"dcal/{own}/has_read/{other}"]):
                others.remove(other)
        time.sleep(POLL)
    return own
