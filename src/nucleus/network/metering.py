"""What one request to a model costs: the most that it may, then what its answer says, while it streams.

 1. The request's body bounds the answer: input by its bytes, output by its own limit. That much is reserved first.
 2. Where the budget does not hold that much, a stream is paid for by instalments: the input and `STEP` tokens, and
    another step before the one that is paid for is used up. The first one that is refused ends the answer.
 3. At its end it is charged what the provider says. Where it says nothing: a stream by what came (a byte is a token),
    anything else that was sent, and one that may have reasoned unseen, by the most that it may cost, an error nothing.

Promises: what is charged in all never exceeds what was reserved in all, and every part says what it cost.
Relies on: `models` for reading both sides. Does not: reserve, or ask (`buys` is given who does).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from nucleus.errors import InvalidError
from nucleus.network import model_usage, models
from nucleus.network.exchange import Exchange
from nucleus.network.httphead import Head

STEP = 2_048  # tokens of one instalment; the next is bought when half of it is used


class Metered:
    """The meter of one request.

    Args:
        api: of `models.APIS`.
        price: micro-dollars for a million tokens: input, output, cache read, cache write; () for dear.
        head: the request, its body whole.

    Attributes:
        head: what to send.
        upper: micro-dollars to reserve for the next part.

    Raises:
        InvalidError: a shape that is not passed on.
    """

    def __init__(self, api: str, price: tuple[int, ...], head: Head) -> None:
        self.api = api
        self.price = model_usage.Price(*price) if price else model_usage.DEFAULT_PRICE
        self.path = models.route(api, head.method, head.path + head.query)
        self.head = head
        self.cost = 0  # so far
        self.upper = 0
        self._paid = 0  # of `cost`, by the parts that are over
        self._bought = 0  # by all parts
        self._request: models.Request | None = None
        self._reader: model_usage.UsageReader | None = None
        self._instalments = False
        self._buying: asyncio.Task[int] | None = None
        self._more: Callable[[int], Awaitable[int]]
        if not head.plain_body:
            raise InvalidError("a compressed body, or one of another charset, cannot be read", rule="model.json")
        if head.method == "POST":
            self._request = models.check(api, self.path, head.body)
            self.head = _with_body(head, model_usage.needs_usage(api, self.path, head.body))
            self.upper = self._bought = model_usage.bound(self._request, self.price)

    def smaller(self) -> bool:
        """Step 2: whether instalments are possible; `upper` is then the first."""
        request = self._request
        if request is None or not request.stream or request.thinking or self._instalments:
            return False
        self.upper = self._bought = model_usage.bound(replace(request, max_tokens=STEP), self.price)
        self._instalments = True
        return True

    def buys(self, more: Callable[[int], Awaitable[int]]) -> None:
        """Who asks for another part, given what to reserve for it; 0 for a refusal."""
        self._more = more

    def part(self) -> int:
        """Micro-dollars that the part which is over now has cost."""
        due = max(0, min(self.cost, self._bought) - self._paid)
        self._paid += due
        return due

    def left(self) -> int:
        """Micro-dollars that are bought and not used so far: a part that ends now gives them back."""
        return max(0, self._bought - max(self.cost, self._paid))

    def observe(self, exchange: Exchange, data: bytes) -> None:
        """A piece of the answer, before the client has it."""
        if self._request is None:
            return
        if self._reader is None:
            kind = next((value for name, value in exchange.reply if name.lower() == b"content-type"), b"")
            self._reader = model_usage.UsageReader(self.api, self.path, kind.decode("latin-1"))
        self._reader.feed(data)
        self.cost = max(self.cost, model_usage.cost(self._so_far(self._reader), self.price))
        if self._instalments:
            self._instalment(exchange)

    def _so_far(self, reader: model_usage.UsageReader) -> model_usage.Tokens:
        tokens = reader.tokens()
        assert self._request is not None
        if reader.final:
            return tokens
        known = tokens.input + tokens.cache_read + tokens.cache_write
        spoken = max(tokens.output, reader.estimated_output)
        if known:
            return replace(tokens, output=spoken)
        return model_usage.Tokens(input=self._request.input_bound, output=spoken)

    def _instalment(self, exchange: Exchange) -> None:
        """Step 2, while it streams."""
        if self._reader is None or self._reader.final:
            return
        step = model_usage.cost(model_usage.Tokens(output=STEP), self.price)
        if self._buying is None and self.cost + step // 2 > self._bought:
            self._buying = asyncio.ensure_future(self._buy(exchange, max(step, self.cost - self._bought + step)))

    async def paced(self) -> None:
        """What is not paid for waits until it is."""
        if self.cost > self._bought and self._buying is not None:
            await asyncio.shield(self._buying)

    async def _buy(self, exchange: Exchange, step: int) -> int:
        got = await self._more(step)
        if got <= 0:
            exchange.stop("budget_exhausted", "the budget is used up")
            return 0  # and nothing more is tried
        self._bought += step
        self._buying = None
        return got

    def over(self, exchange: Exchange) -> None:
        """Step 3."""
        if self._buying is not None:
            self._buying.cancel()
        if self._request is None or exchange.up == 0 or exchange.status >= 400:
            return
        if self._reader is not None and self._reader.final:
            self.cost = model_usage.cost(self._reader.tokens(), self.price)
        elif not self._request.stream or self._reader is None or self._request.thinking:
            self.cost = max(self.cost, self._bought)
        else:
            most = replace(self._so_far(self._reader), output=self._reader.most_output)
            self.cost = max(self.cost, model_usage.cost(most, self.price))


def _with_body(head: Head, body: bytes) -> Head:
    return head if body == head.body else replace(head, body=body, length=len(body))
