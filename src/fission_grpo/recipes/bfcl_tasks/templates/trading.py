"""Templates for TradingBot."""

from random import Random

from fission_grpo.recipes.bfcl_tasks.templates.base import Sandbox, UserRequest, any_call, choice_from, one_call
from fission_grpo.recipes.bfcl_tasks.templates.words import a_password, a_user

# fmt: off
SYMBOLS = ("AAPL", "GOOG", "TSLA", "MSFT", "NVDA", "ZETA", "ALPH", "OMEG", "QUAS", "NEPT", "SYNX", "AMZN")
COMPANIES = {
    "Apple": "AAPL", "Google": "GOOG", "Tesla": "TSLA", "Microsoft": "MSFT", "Nvidia": "NVDA", "Amazon": "AMZN",
}
OVERVIEWS = {
    "get_account_info": ("Show my trading account.", "What is my account balance?"),
    "get_watchlist": ("Show my watchlist.", "What is on my watchlist?"),
    "get_order_history": ("List my order ids.", "Show my order history."),
    "get_current_time": ("What time is it at the exchange?", "Tell me the market time."),
}


def config(rng: Random) -> dict[str, object]:
    """Prices, an account, a watchlist and orders."""
    symbols = sorted(rng.sample(SYMBOLS, 6))
    first = rng.randint(2000, 90000)
    stocks = {}
    for symbol in symbols:
        price = round(rng.uniform(20, 900), 2)
        moves = {"percent_change": round(rng.uniform(-4, 4), 2), "volume": round(rng.uniform(0.5, 9), 3)}
        stocks[symbol] = {"price": price, **moves, "MA(5)": round(price * 0.99, 2), "MA(20)": round(price * 0.97, 2)}
    orders = {}
    for id_ in range(first, first + rng.randint(1, 3)):
        kind, symbol, amount = rng.choice(("Buy", "Sell")), rng.choice(symbols), rng.randint(1, 90)
        status = rng.choice(("Open", "Pending", "Completed"))
        terms = {"order_type": kind, "symbol": symbol, "amount": amount, "price": rng.randint(20, 900)}
        orders[str(id_)] = {"id": id_, **terms, "status": status}
    account_number = rng.randint(10**15, 10**16 - 1)
    account = {"account_id": rng.randint(10000, 99999), "balance": rng.randint(20, 900) * 100.0}
    return {
        "orders": orders,
        "account_info": account | {"binding_card": account_number},
        "authenticated": rng.random() < 0.8,
        "market_status": "Open",
        "order_counter": first + len(orders),
        "stocks": stocks,
        "watch_list": rng.sample(symbols, 2),
        "transaction_history": [],
        "random_seed": rng.randint(1, 10**6),
    }


a_symbol = choice_from("TradingBot", lambda api: sorted(api.stocks))
unwatched_symbol = choice_from(
    "TradingBot", lambda api: [symbol for symbol in sorted(api.stocks) if symbol not in api.watch_list]
)
company = choice_from("TradingBot", lambda api: [name for name, symbol in COMPANIES.items() if symbol in api.stocks])
open_order = choice_from(
    "TradingBot", lambda api: [id for id, order in api.orders.items() if order["status"] in ("Open", "Pending")]
)


def order(t: Sandbox) -> UserRequest:
    symbol, kind, amount = a_symbol(t), t.pick(("Buy", "Sell")), t.rng.randint(1, 20)
    t.do("place_order", order_type=kind, symbol=symbol, price=float(t.rng.randint(20, 300)), amount=amount)
    return t.request("{order_type} {amount} shares of {symbol} at {price}.",
                     "Place an order: {order_type} {amount} {symbol} for {price} each.",
                     vague="{order_type} shares of {symbol} at {price}.", detail="{amount} shares.")


def order_at_market(t: Sandbox) -> UserRequest:
    symbol, amount = a_symbol(t), t.rng.randint(1, 9)
    price = t.do("get_stock_info", symbol=symbol)["price"]
    t.do("place_order", order_type="Buy", symbol=symbol, price=price, amount=amount)
    return t.request("Look up {symbol} and Buy {amount} shares at its current price.",
                     "What does {symbol} cost? Buy {amount} at that price.")


def find_symbol(t: Sandbox) -> UserRequest:
    symbol = t.do("get_symbol_by_name", name=company(t))["symbol"]
    if t.rng.random() < 0.5:
        return t.request("What is the symbol of {name}?", "Find {name}'s stock symbol.")
    t.do("add_to_watchlist", stock=symbol)
    return t.request("Find the symbol of {name} and put it on my watchlist.",
                     "Watch {name}: look up its symbol and add it.")


def cancel(t: Sandbox) -> UserRequest:
    order_id = open_order(t)
    if t.rng.random() < 0.5:
        t.do("cancel_order", order_id=order_id)
        return t.request("Cancel order {order_id}.", "Please cancel my order {order_id}.",
                         vague="Cancel my order.", detail="Order {order_id}.")
    t.do("get_order_details", order_id=order_id)
    t.do("cancel_order", order_id=order_id)
    return t.request("Show order {order_id}, then cancel it.",
                     "Give me the details of order {order_id} and cancel it.")


def transfer(t: Sandbox) -> UserRequest:
    amount = t.rng.randint(1, 19) * 100.0
    if t.rng.random() < 0.5:
        t.do("fund_account", amount=amount)
        return t.request("Deposit {amount} into my account.", "Fund my account with {amount}.",
                         vague="Deposit some money into my account.", detail="{amount}, please.")
    t.do("withdraw_funds", amount=amount)
    return t.request("Withdraw {amount} from my account.", "Take {amount} out of my account.",
                     vague="Withdraw some money from my account.", detail="{amount}, please.")


def filter_by_price(t: Sandbox) -> UserRequest:
    stocks = sorted(t.rng.sample(sorted(t.instance("TradingBot").stocks), 3))
    low, high = float(t.rng.randint(20, 200)), float(t.rng.randint(300, 900))
    t.do("filter_stocks_by_price", stocks=stocks, min_price=low, max_price=high)
    return t.request("Which of {stocks} cost between {min_price} and {max_price}?",
                     "Filter {stocks} to prices from {min_price} to {max_price}.")


TEMPLATES = (
    one_call("trading_login", "Log in to trading as {username}, password {password}.",
             "Sign in to my broker: {username}, {password}.",
             vague="Log in to trading as {username}.", detail="The password is {password}.",
             when=lambda t: not t.instance("TradingBot").authenticated, username=a_user, password=a_password),
    order,
    order,
    order_at_market,
    one_call("get_stock_info", "Show me the data of {symbol}.", "How is {symbol} doing?",
             vague="Show me the data of a stock.", detail="I mean {symbol}.", symbol=a_symbol),
    find_symbol,
    cancel,
    one_call("get_order_details", "Show me order {order_id}.", "What are the details of order {order_id}?",
             order_id=lambda t: t.pick(list(t.instance("TradingBot").orders))),
    transfer,
    one_call("add_to_watchlist", "Add {stock} to my watchlist.", "Watch {stock} for me.", stock=unwatched_symbol),
    one_call("remove_stock_from_watchlist", "Remove {symbol} from my watchlist.", "Stop watching {symbol}.",
             symbol=lambda t: t.pick(t.instance("TradingBot").watch_list)),
    any_call(OVERVIEWS),
    filter_by_price,
)
