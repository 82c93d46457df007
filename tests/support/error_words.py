"""Environments whose tools report errors in words only, as those of τ-bench do."""

from fission_grpo.envs.desk.env import Desk
from fission_grpo.envs.wrapper import tool_methods


class Orders:
    """Five tools, which return "Error: ..." where others raise."""

    def reset(self, orders=None, **_):
        self.orders = {"7": "paid", "8": "sent"} | (orders or {})

    def get_reward(self) -> float:
        return float(self.orders["7"] == "cancelled")

    def _of(self, order: str, then: str | None = None) -> str:
        if order not in self.orders:
            return f"Error: order {order} not found"
        if then is not None:
            if self.orders[order] != "paid":
                return f"Error: order {order} is {self.orders[order]}"
            self.orders[order] = then
        return f"order {order} is {self.orders[order]}"

    def find(self, order: str) -> str:
        """Find an order.

        Args:
            order: Its number.
        """
        return self._of(order)

    def cancel(self, order: str) -> str:
        """Cancel an order.

        Args:
            order: Its number.
        """
        return self._of(order, "cancelled")

    def send(self, order: str) -> str:
        """Send an order.

        Args:
            order: Its number.
        """
        return self._of(order, "sent")

    def refund(self, order: str) -> str:
        """Refund an order.

        Args:
            order: Its number.
        """
        return self._of(order, "refunded")

    def list_orders(self) -> str:
        """List all orders."""
        return ", ".join(self.orders)


def in_words(tool):
    """The tool with its exceptions returned as text."""

    def method(self, *args, **kwargs):
        try:
            return tool(self, *args, **kwargs)
        except ValueError as error:
            return f"Error: {error}"

    method.__name__, method.__doc__ = tool.__name__, tool.__doc__
    method.__wrapped__, method.__annotations__ = tool, tool.__annotations__
    return method


class WordyDesk(Desk):
    """The desk, whose tools return their errors as "Error: ..."."""


for name in tool_methods(Desk()):
    setattr(WordyDesk, name, in_words(getattr(Desk, name)))
