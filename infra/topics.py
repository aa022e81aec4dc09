"""Names the topics of the event log, and says which of them a log with several partitions treats differently."""

SHOP = "shop_events"  # item, view, cart, purchase, return; key: user or session (catalogue: item)
TRANSACTIONS = "transactions"  # card payments; key: card
LABELS = "labels"  # late fraud labels; key: card, or transaction where the card is not known
IMPRESSIONS = "impressions"  # what was shown, where, why; key: user or session
DECISIONS = "decisions"  # scored transactions; an alert is a decision whose outcome is not approve; key: card
EXPERIMENTS = "experiments"  # experiment definitions, the last one of a key is valid; key: experiment
RULES = "rules"  # rules of each surface for re-ranking, the last ones of a surface are valid; key: surface
DEAD_LETTERS = "dead_letters"  # records that cannot be events, with reason and origin; key: reason

ALL = (SHOP, TRANSACTIONS, LABELS, IMPRESSIONS, DECISIONS, EXPERIMENTS, RULES, DEAD_LETTERS)

IN_ONE_ORDER = (EXPERIMENTS, RULES, DEAD_LETTERS)
"""Topics with one partition, whatever the others have: they hold few records, which are read as one sequence."""
KEPT_FOR_EVER = (EXPERIMENTS, RULES)
"""Topics that are neither expired nor compacted: readers need all records to know the valid rules and experiments, and
which experiments have run before."""
