"""TradingBot."""

from __future__ import annotations

import random
from typing import Any

from fission_grpo.recipes.bfcl_tasks.templates.base import (
    NAMES,
    Intent,
    Request,
    Trial,
)

SYMBOLS = ("AAPL", "GOOG", "TSLA", "MSFT", "NVDA", "ZETA", "ALPH", "OMEG", "QUAS", "NEPT", "SYNX", "AMZN")


COMPANIES = {
    "Apple": "AAPL",
    "Google": "GOOG",
    "Tesla": "TSLA",
    "Microsoft": "MSFT",
    "Nvidia": "NVDA",
    "Amazon": "AMZN",
}


def config(rng: random.Random) -> dict[str, Any]:
    """Prices, an account, a watch list and open orders."""
    symbols = sorted(rng.sample(SYMBOLS, 6))
    first = rng.randint(2000, 90000)
    stocks = {}
    for symbol in symbols:
        price = round(rng.uniform(20, 900), 2)
        moves = {"percent_change": round(rng.uniform(-4, 4), 2), "volume": round(rng.uniform(0.5, 9), 3)}
        stocks[symbol] = {"price": price, **moves, "MA(5)": round(price * 0.99, 2), "MA(20)": round(price * 0.97, 2)}
    orders = {}
    for number in range(rng.randint(1, 3)):
        terms = {
            "order_type": rng.choice(("Buy", "Sell")),
            "symbol": rng.choice(symbols),
            "amount": rng.randint(1, 90),
        }
        status = rng.choice(("Open", "Pending", "Completed"))
        orders[str(first + number)] = {"id": first + number, **terms, "price": rng.randint(20, 900), "status": status}
    card = rng.randint(10**15, 10**16 - 1)
    return {
        "orders": orders,
        "account_info": {
            "account_id": rng.randint(10000, 99999),
            "balance": rng.randint(20, 900) * 100.0,
            "binding_card": card,
        },
        "authenticated": rng.random() < 0.8,
        "market_status": "Open",
        "order_counter": first + len(orders),
        "stocks": stocks,
        "watch_list": rng.sample(symbols, 2),
        "transaction_history": [],
        "random_seed": rng.randint(1, 10**6),
    }


def log_in(t: Trial) -> Request:
    user, password = t.pick(NAMES).lower(), f"{t.pick(NAMES).lower()}{t.rng.randint(10, 99)}"
    if t.state("TradingBot").authenticated:
        t.pick(())
    t.do("trading_login", username=user, password=password)
    return t.ask(
        "Log in to trading as {user}, password {password}.",
        "Sign in to my broker: {user}, {password}.",
        vague="Log in to trading as {user}.",
        detail="The password is {password}.",
        user=user,
        password=password,
    )


def order(t: Trial) -> Request:
    state = t.state("TradingBot")
    symbol, kind, amount = t.pick(sorted(state.stocks)), t.pick(("Buy", "Sell")), t.rng.randint(1, 20)
    price = float(t.rng.randint(20, 300))
    t.do("place_order", order_type=kind, symbol=symbol, price=price, amount=amount)
    return t.ask(
        "{kind} {amount} shares of {symbol} at {price}.",
        "Place an order: {kind} {amount} {symbol} for {price} each.",
        vague="{kind} shares of {symbol} at {price}.",
        detail="{amount} shares.",
        kind=kind,
        amount=amount,
        symbol=symbol,
        price=price,
    )


def order_at_market(t: Trial) -> Request:
    symbol, amount = t.pick(sorted(t.state("TradingBot").stocks)), t.rng.randint(1, 9)
    price = t.do("get_stock_info", symbol=symbol)["price"]
    t.do("place_order", order_type="Buy", symbol=symbol, price=price, amount=amount)
    return t.ask(
        "Look up {symbol} and Buy {amount} shares at its current price.",
        "What does {symbol} cost? Buy {amount} at that price.",
        symbol=symbol,
        amount=amount,
    )


def quote(t: Trial) -> Request:
    symbol = t.pick(sorted(t.state("TradingBot").stocks))
    t.do("get_stock_info", symbol=symbol)
    return t.ask(
        "Show me the data of {symbol}.",
        "How is {symbol} doing?",
        vague="Show me the data of a stock.",
        detail="I mean {symbol}.",
        symbol=symbol,
    )


def symbol_of(t: Trial) -> Request:
    company = t.pick([name for name, symbol in COMPANIES.items() if symbol in t.state("TradingBot").stocks])
    symbol = t.do("get_symbol_by_name", name=company)["symbol"]
    if t.rng.random() < 0.5:
        return t.ask("What is the symbol of {company}?", "Find {company}'s stock symbol.", company=company)
    t.do("add_to_watchlist", stock=symbol)
    return t.ask(
        "Find the symbol of {company} and put it on my watchlist.",
        "Watch {company}: look up its symbol and add it.",
        company=company,
    )


def cancel(t: Trial) -> Request:
    orders = t.state("TradingBot").orders
    number = t.pick([number for number, one in orders.items() if one["status"] in ("Open", "Pending")])
    if t.rng.random() < 0.5:
        t.do("cancel_order", order_id=number)
        return t.ask(
            "Cancel order {id}.",
            "Please cancel my order {id}.",
            vague="Cancel my order.",
            detail="Order {id}.",
            id=number,
        )
    t.do("get_order_details", order_id=number)
    t.do("cancel_order", order_id=number)
    return t.ask("Show order {id}, then cancel it.", "Give me the details of order {id} and cancel it.", id=number)


def details(t: Trial) -> Request:
    number = t.pick(list(t.state("TradingBot").orders))
    t.do("get_order_details", order_id=number)
    return t.ask("Show me order {id}.", "What are the details of order {id}?", id=number)


def money(t: Trial) -> Request:
    amount = t.rng.randint(1, 19) * 100.0
    if t.rng.random() < 0.5:
        t.do("fund_account", amount=amount)
        return t.ask(
            "Deposit {amount} into my account.",
            "Fund my account with {amount}.",
            vague="Deposit some money into my account.",
            detail="{amount}, please.",
            amount=amount,
        )
    t.do("withdraw_funds", amount=amount)
    return t.ask(
        "Withdraw {amount} from my account.",
        "Take {amount} out of my account.",
        vague="Withdraw some money from my account.",
        detail="{amount}, please.",
        amount=amount,
    )


def watch(t: Trial) -> Request:
    state = t.state("TradingBot")
    symbol = t.pick([one for one in sorted(state.stocks) if one not in state.watch_list])
    t.do("add_to_watchlist", stock=symbol)
    return t.ask("Add {symbol} to my watchlist.", "Watch {symbol} for me.", symbol=symbol)


def unwatch(t: Trial) -> Request:
    symbol = t.pick(t.state("TradingBot").watch_list)
    t.do("remove_stock_from_watchlist", symbol=symbol)
    return t.ask("Remove {symbol} from my watchlist.", "Stop watching {symbol}.", symbol=symbol)


def overview(t: Trial) -> Request:
    name, texts = t.pick(
        [
            ("get_account_info", ("Show my trading account.", "What is my account balance?")),
            ("get_watchlist", ("Show my watchlist.", "What is on my watchlist?")),
            ("get_order_history", ("List my order ids.", "Show my order history.")),
            ("get_current_time", ("What time is it at the exchange?", "Tell me the market time.")),
        ]
    )
    t.do(name)
    return t.ask(*texts)


def in_range(t: Trial) -> Request:
    stocks = sorted(t.rng.sample(sorted(t.state("TradingBot").stocks), 3))
    low, high = float(t.rng.randint(20, 200)), float(t.rng.randint(300, 900))
    t.do("filter_stocks_by_price", stocks=stocks, min_price=low, max_price=high)
    return t.ask(
        "Which of {stocks} cost between {low} and {high}?",
        "Filter {stocks} to prices from {low} to {high}.",
        stocks=", ".join(stocks),
        low=low,
        high=high,
    )


INTENTS: tuple[Intent, ...] = (
    log_in,
    order,
    order,
    order_at_market,
    quote,
    symbol_of,
    cancel,
    details,
    money,
    watch,
    unwatch,
    overview,
    in_range,
)
