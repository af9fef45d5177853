"""A queue that takes turns between accounts (keys or addresses), and within an account between users."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import Final, Generic, NamedTuple, TypeVar

Entry = TypeVar("Entry")


class Sender(NamedTuple):
    """The sender of a request: account is the name of the key, or the address of a client without one; user is the
    body's user, which does not give an account more turns."""

    account: str = ""
    user: str = ""


ANONYMOUS: Final = Sender()


class FairQueue(Generic[Entry]):
    """Takes from each account in turn, in an account from each user in turn, and the oldest entry of a user first."""

    def __init__(self) -> None:
        self._accounts: OrderedDict[str, OrderedDict[str, OrderedDict[int, Entry]]] = OrderedDict()
        self._num_waiting = 0

    def __len__(self) -> int:
        return self._num_waiting

    def num_waiting(self, account: str) -> int:
        """The number of account's entries."""
        return sum(map(len, self._accounts.get(account, {}).values()))

    def put(self, sender: Sender, entry: Entry) -> None:
        """Append entry to its sender's entries."""
        users = self._accounts.setdefault(sender.account, OrderedDict())
        users.setdefault(sender.user, OrderedDict())[id(entry)] = entry
        self._num_waiting += 1

    def remove(self, sender: Sender, entry: Entry) -> bool:
        """Remove an entry whose sender has disconnected. False if it is not in the queue."""
        users = self._accounts.get(sender.account, OrderedDict())
        entries = users.get(sender.user, OrderedDict())
        if entries.pop(id(entry), None) is None:
            return False
        self._forget_empty(sender)
        return True

    def take(self, busy: Collection[str] = ()) -> Entry | None:
        """The next entry of an account that is not busy; None where there is none."""
        account = next((name for name in self._accounts if name not in busy), None)
        if account is None:
            return None
        users = self._accounts[account]
        user = next(iter(users))
        _, entry = users[user].popitem(last=False)
        users.move_to_end(user)
        self._accounts.move_to_end(account)
        self._forget_empty(Sender(account, user))
        return entry

    def _forget_empty(self, sender: Sender) -> None:
        """One entry of sender's is gone."""
        self._num_waiting -= 1
        users = self._accounts[sender.account]
        if not users[sender.user]:
            del users[sender.user]
        if not users:
            del self._accounts[sender.account]
