"""The topics of the event log, spelled once, and how a log of several partitions keeps them."""

SHOP = "shop_events"  # item, view, cart, purchase, return; key: user or session (catalogue: item)
TRANSACTIONS = "transactions"  # card payments; key: card
LABELS = "labels"  # late fraud labels; key: card, or transaction where the card is not known
IMPRESSIONS = "impressions"  # what was shown, where, why; key: user or session
DECISIONS = "decisions"  # scored transactions; an alert is a decision whose outcome is not approve; key: card
EXPERIMENTS = "experiments"  # experiment definitions, the last one of a key holds; key: experiment
RULES = "rules"  # what each surface does after ranking, the last one of a surface holds; key: surface
DEAD_LETTERS = "dead_letters"  # what could not be an event, with reason and origin; key: reason

ALL = (SHOP, TRANSACTIONS, LABELS, IMPRESSIONS, DECISIONS, EXPERIMENTS, RULES, DEAD_LETTERS)

IN_ONE_ORDER = (EXPERIMENTS, RULES, DEAD_LETTERS)
"""Few records, read as one sequence: one partition, however many the others have."""
KEPT_FOR_EVER = (EXPERIMENTS, RULES)
"""Never thinned out nor compacted: what holds now, and that an experiment has run once, is read from all of it."""
