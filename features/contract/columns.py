"""Names every table of events and every column of the offline and online store. Times are int64 ms since the epoch."""

import pyarrow as pa

SHOP_EVENTS = "shop_events"
IMPRESSIONS = "impressions"
LABELS = "labels"
"""The tables of events, folders of the offline store; the views are in features/store/views.py."""

USER = "user_id"
ITEM = "item_id"
CARD = "card_id"
TERMINAL = "terminal_id"
TRANSACTION = "transaction_id"

EVENT_TIMESTAMP = "event_timestamp"
"""The moment from which a feature row holds."""
CREATED_TIMESTAMP = "created_timestamp"
"""When the row was written; of several rows with the same event_timestamp the newest holds."""

# A history: the latest events of one user, card or terminal, oldest first, as parallel arrays.
TIMES = "times"
EVENT_HASHES = "event_hashes"
ITEMS = "items"
EVENT_TYPES = "kinds"
PRICES = "prices"
QUANTITIES = "quantities"
AMOUNTS = "amounts"
COUNTERPARTIES = "partners"
"""The other side of a payment: terminals of a card, cards of a terminal."""
FRAUD_TIMES = "fraud_times"
"""When the transactions that are known to be fraud took place."""
FRAUD_KNOWN_TIMES = "fraud_known_times"
"""When each of them became known."""
FRAUD_HASHES = "fraud_hashes"

# Daily totals of an item: TIMES is the start of each UTC day.
ORDERS = "orders"
UNITS = "units"
REVENUE = "revenue"
RETURNS = "returns"

NEIGHBOURS = "neighbours"
"""Items often bought in the same order, most similar first."""
SIMILARITIES = "similarities"

EVENT_TYPE_CODES = {"view": 0, "cart": 1, "purchase": 2, "return": 3}

SHOP_EVENTS_SCHEMA = pa.schema(
    [
        ("event_id", pa.string()), ("type", pa.string()), ("event_time", pa.int64()), ("user_id", pa.string()),
        ("session_id", pa.string()), ("item_id", pa.string()), ("quantity", pa.float64()), ("price", pa.float64()),
        ("order_id", pa.string()), ("request_id", pa.string()), ("title", pa.string()), ("category", pa.string()),
    ]
)  # fmt: skip
"""Shop events as a table: the fields of the item events of features/contract/events.py."""
